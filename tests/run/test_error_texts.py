from qfleet.run.error_texts import MAX_TEXTS, write_error_text


def test_texts_are_numbered_and_lose_their_colours(tmp_path):
    first = write_error_text(tmp_path, "\x1b[36mray::Actor\x1b[39m\nKeyError: 'price_table'\n\n")
    second = write_error_text(tmp_path, "again")

    assert first == tmp_path / "errors" / "1.txt"
    assert first.read_text() == "ray::Actor\nKeyError: 'price_table'\n"
    assert second == tmp_path / "errors" / "2.txt"


def test_no_more_texts_than_a_bound(tmp_path):
    written = [write_error_text(tmp_path, str(n)) for n in range(MAX_TEXTS + 3)]

    assert written[MAX_TEXTS:] == [None] * 3
    assert len(list((tmp_path / "errors").iterdir())) == MAX_TEXTS


def test_a_directory_that_takes_nothing_is_no_error(tmp_path):
    (tmp_path / "errors").write_text("in the way")

    assert write_error_text(tmp_path, "text") is None
