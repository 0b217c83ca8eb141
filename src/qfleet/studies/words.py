"""The words of a report, in English and in Japanese.

Called by pages and pictures. A text with fields is filled by the caller's values.
"""

from __future__ import annotations

from typing import Any

from qfleet.common.errors import ConfigError

LANGUAGES = ("en", "ja")

_TEXTS: dict[str, tuple[str, str]] = {
    "updates": ("updates", "更新回数"),
    "return": ("return of greedy episodes", "貪欲方策での収益"),
    "episode": ("training episode", "訓練エピソード"),
    "length": ("length in steps", "長さ(ステップ)"),
    "q_mean": ("mean Q-value", "行動価値の平均"),
    "loss": ("loss", "損失"),
    "grad_norm": ("norm of the gradient", "勾配のノルム"),
    "question": ("Question", "問い"),
    "findings": ("Findings", "結果"),
    "curves": ("Learning curves", "学習曲線"),
    "curves_note": (
        "Interquartile mean over seeds of greedy evaluations; the band is its {confidence} % "
        "bootstrap interval. A run that ended early keeps its last evaluation.",
        "貪欲方策での評価の、シードにわたる四分位平均。帯は{confidence}%ブートストラップ区間。"
        "早く終わった実行は最後の評価の値で続ける。",
    ),
    "why": ("Why: Q-values, loss and gradient", "なぜか:行動価値・損失・勾配"),
    "why_note": (
        "One line per run. Where the values span more than three powers of ten the axis is "
        "logarithmic.",
        "実行ごとに一本の線。値の幅が千倍を超えるときは対数軸で描く。",
    ),
    "behaviour": ("Behaviour", "挙動"),
    "behaviour_note": (
        "Lengths of the training episodes, ε-greedy (of a run with more than 250 each point is the "
        "mean of equally many); below, one episode of the best parameters.",
        "訓練エピソードの長さ(ε-greedy法)。250回を超える実行では、各点は同じ数の連続する"
        "エピソードの平均。下は最も良いパラメータでの1エピソード。",
    ),
    "no_video": (
        "no film: no run of this arm has parameters that were evaluated",
        "動画なし:評価されたパラメータのある実行がない",
    ),
    "table": ("Figures", "数値"),
    "arm": ("arm", "条件"),
    "seeds": ("seeds", "シード"),
    "outcome": ("complete / diverged / failed", "完了 / 発散 / 失敗"),
    "solved": ("solved", "解けた数"),
    "score": ("score of the best parameters", "最良パラメータの得点"),
    "over_training": ("mean over training", "学習全体の平均"),
    "to_threshold": ("updates to {threshold}", "{threshold}に達した更新回数"),
    "train_s": ("training, s", "学習時間(秒)"),
    "differences": ("What differs", "設定の違い"),
    "key": ("key", "キー"),
    "seed": ("seed {n}", "シード{n}"),
    "before_divergence": (
        "{caption}, the best parameters before it diverged",
        "{caption}(発散する前の最良パラメータ)",
    ),
    "seed_list": ("seeds {seeds}", "シード {seeds}"),
    "runtime": ("runtime", "ランタイム"),
    "device": ("device", "デバイス"),
    "learner_path": ("learner path", "学習の実行方式"),
    "written_on": ("page written on: {machine}", "このページを作成した計算機:{machine}"),
    "base_changes": (
        "in every arm, other than in preset {preset}: {settings}",
        "全条件で、プリセット {preset} から変えた設定:{settings}",
    ),
    "failures": ("Runs that failed", "失敗した実行"),
    "how": ("How it was measured", "測定条件"),
    "repeat": ("Repeat it with", "再現するには"),
    "running": ("{done} of {all} runs are complete.", "全{all}実行のうち{done}が完了。"),
    "reached_in": (
        "reached {threshold} in {reached} of {n} seeds",
        "{n}シード中{reached}で{threshold}に到達",
    ),
    "after": ("after {steps} updates (median)", "(更新{steps}回、中央値)"),
    "diverged_in": (
        "diverged in {diverged} of {n} seeds, after {steps} updates (median)",
        "{n}シード中{diverged}で発散(更新{steps}回、中央値)",
    ),
    "scored": (
        "best parameters scored {value} ({low}–{high})",
        "最良パラメータの得点は{value}({low}–{high})",
    ),
    "scored_few": (
        "best parameters scored {value} ({low}–{high}) in the {k} seeds that were evaluated",
        "最良パラメータの得点は、評価に至った{k}シードで{value}({low}–{high})",
    ),
    "q_grew": ("mean Q-value up to {value}", "行動価値の平均は最大{value}"),
    "gained": (
        "Against '{base}', '{arm}' returns {value} ({low} to {high}) over the whole training, "
        "compared seed by seed ({n} seeds).",
        "学習全体の平均収益は、同じシードどうしの比較で「{arm}」が「{base}」に対して"
        "{value}({low}〜{high}、{n}シード)。",
    ),
    "not_apart": (
        "The intervals of the scores overlap: with these seeds the arms are not told apart by "
        "score.",
        "得点の区間は重なっており、このシード数では得点で区別できない。",
    ),
    "apart": (
        "The score of '{best}' lies above that of '{worst}', interval against interval.",
        "「{best}」の得点は「{worst}」を上回り、区間も重ならない。",
    ),
    "few_seeds": (
        "With {n} seeds such intervals are too narrow to rely on; five or more tell more.",
        "シードが{n}個では区間は狭く出すぎるため当てにならない。5個以上が望ましい。",
    ),
    "loss_gradients": (
        "Arms differ in their loss: MSE is δ², Huber δ²/2 near 0, so that MSE's gradient is twice "
        "Huber's. At one learning rate MSE steps twice as far.",
        "条件によって損失関数が異なる。MSEはδ²、Huberは0の近くでδ²/2なので、MSEの勾配はHuberの2倍になる。"
        "学習率が同じなら、MSEの一歩は2倍の大きさになる。",
    ),
    "no_score": ("no run was evaluated", "評価された実行なし"),
}


class Words:
    """Texts of one language.

    Raises:
        ConfigError: when there is no such language.
    """

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise ConfigError(f"--language must be one of {', '.join(LANGUAGES)}, got {language}")
        self.language = language

    def __call__(self, key: str, **fields: Any) -> str:
        """The text of that key."""
        return _TEXTS[key][LANGUAGES.index(self.language)].format(**fields)
