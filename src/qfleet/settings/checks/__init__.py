"""Rules between keys, by what they are about; `settings/config_checks.py` has the rest."""
