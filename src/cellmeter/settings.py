"""What the user may set, in TOML: ``$CELLMETER_CONFIG``, else ``config.toml`` in the platform's user config directory."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cellmeter.errors import BadUsage

MIN_RATE_HZ = 0.1
MAX_RATE_HZ = 100.0
MIN_TOTAL_GIB = 0.01
_KIND_NAMES: Mapping[type, str] = {float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Prices:
    """What an hour costs, in ``currency``. None: not said, and then no report speaks of money."""

    gpu_hour: float | None = None
    cpu_hour: float | None = None
    memory_gb_hour: float | None = None
    currency: str = "$"


@dataclass(frozen=True)
class Settings:
    """All settings with their defaults."""

    rate_hz: float = 10.0
    """Samples a second inside cells, 0.1 to 100."""
    exact_peak: bool = True
    """Resets the kernel's own high-water mark (VmHWM) at each cell's start; this lowers what ``ru_maxrss`` tells."""
    max_total_gib: float = 2.0
    """Recorded runs are kept up to this size together; the oldest go first, those being recorded never."""
    keep_source: bool = False
    """Keeps the full source of cells, not only its hash and first line: notebooks hold secrets."""
    prices: Prices = Prices()
    """What is paid, for what findings say of waste."""
    rules: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Other thresholds, by rule and name; whether there are such is checked where the rules are."""


def checked_rate(rate_hz: float) -> float:
    """The rate, if it can be kept. Raises BadUsage."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise BadUsage(f"a rate of {rate_hz:g} Hz is not possible: choose {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}")
    return rate_hz


def settings_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the settings lie, whether there are any or not."""
    if path := environ.get("CELLMETER_CONFIG"):
        return Path(path).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("cellmeter", appauthor=False)) / "config.toml"


def missing_settings(environ: Mapping[str, str] = os.environ) -> str | None:
    """What is wrong where the user names a file that is not there: the defaults hold, and should not do so in silence."""
    path = environ.get("CELLMETER_CONFIG")
    if not path or settings_path(environ).exists():
        return None
    return f"there is no file {path}, which CELLMETER_CONFIG names"


def load_settings(path: Path | None = None) -> Settings:
    """Reads the settings; all defaults if there is no file. Raises BadUsage for one that cannot be used."""
    path = settings_path() if path is None else path
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadUsage(f"{path} is no valid TOML: {error}") from None
    settings = _from_table(table, path)
    checked_rate(settings.rate_hz)
    if not MIN_TOTAL_GIB <= settings.max_total_gib < float("inf"):
        raise BadUsage(f"{path}: max_total_gib must be at least {MIN_TOTAL_GIB:g}, not {settings.max_total_gib:g}")
    return settings


def _from_table(table: Mapping[str, Any], path: Path) -> Settings:
    kinds = {field.name: type(field.default) for field in fields(Settings)}
    for name, value in table.items():
        if name not in kinds:
            raise BadUsage(f"{path}: there is no setting {name!r}; there are {', '.join(kinds)}")
        if name in ("prices", "rules"):
            if not isinstance(value, dict):
                raise BadUsage(f"{path}: {name} must be a table, [{name}], not {value!r}")
            continue
        accepted = (int, float) if kinds[name] is float else kinds[name]
        if not isinstance(value, accepted) or (isinstance(value, bool) and kinds[name] is not bool):
            raise BadUsage(f"{path}: {name} must be {_KIND_NAMES[kinds[name]]}, not {value!r}")
    tables = {"prices": _prices(table.get("prices", {}), path), "rules": _thresholds(table.get("rules", {}), path)}
    return Settings(**{**table, **tables})


def _prices(table: Mapping[str, Any], path: Path) -> Prices:
    names = [field.name for field in fields(Prices)]
    for name, value in table.items():
        if name not in names:
            raise BadUsage(f"{path}: there is no price {name!r}; there are {', '.join(names)}")
        if name == "currency":
            if not isinstance(value, str):
                raise BadUsage(f"{path}: prices.currency must be a text, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise BadUsage(f"{path}: prices.{name} must be a number of at least 0, not {value!r}")
    return Prices(**table)


def _thresholds(table: Mapping[str, Any], path: Path) -> Mapping[str, Mapping[str, float]]:
    for rule, values in table.items():
        if not isinstance(values, dict):
            raise BadUsage(f"{path}: rules.{rule} must be a table, [rules.{rule}], not {values!r}")
    return table
