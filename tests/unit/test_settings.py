"""Settings: read once, named when wrong, secrets never shown."""

from pathlib import Path

import pytest

from gateway.settings import InvalidSettings, Settings, read_settings

GOOD = {
    "SILOGATE_DATABASE_URL": "postgresql://silogate:pw@db:5432/silogate",
    "SILOGATE_REDIS_URL": "redis://redis:6379/0",
    "SILOGATE_KAFKA_BOOTSTRAP": "kafka:9092",
    "SILOGATE_SMTP_URL": "smtp://mail:25",
    "SILOGATE_KEY_RING": "1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
}


def problems(environment: dict[str, str]) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        read_settings(environment)
    return caught.value.problems


def test_the_environment_is_enough() -> None:
    """Five addresses and the key ring make a working configuration; everything else has a default."""
    settings = read_settings(GOOD)
    assert settings.database_url.get_secret_value() == "postgresql://silogate:pw@db:5432/silogate"
    assert settings.replicas == ("postgresql://silogate:pw@db:5432/silogate",)
    assert settings.lookup_timeout == 2.0


def test_replicas_and_recipients_are_read_by_name() -> None:
    """Replicas are a comma list; each recipient has a variable of its own."""
    settings = read_settings(
        GOOD
        | {
            "SILOGATE_REPLICA_URLS": "postgresql://a/db, postgresql://b/db",
            "SILOGATE_RECIPIENT_STREET_TEAM_URL": "postgresql://street/db",
        }
    )
    assert settings.replicas == ("postgresql://a/db", "postgresql://b/db")
    assert settings.recipients["street-team"].get_secret_value() == "postgresql://street/db"


def test_limits_are_read_by_sink() -> None:
    """Acts an hour come as `name=number`; anything else is named."""
    found = read_settings({**GOOD, "SILOGATE_EFFECTS_PER_HOUR": "email=500, letters=0"})
    assert found.effects_per_hour == {"email": 500, "letters": 0}
    with pytest.raises(InvalidSettings, match="SILOGATE_EFFECTS_PER_HOUR"):
        read_settings({**GOOD, "SILOGATE_EFFECTS_PER_HOUR": "500"})


def test_a_missing_setting_is_named_with_its_meaning() -> None:
    """What is not set is said with what it is for."""
    found = problems({name: value for name, value in GOOD.items() if name != "SILOGATE_KAFKA_BOOTSTRAP"})
    assert found == ["SILOGATE_KAFKA_BOOTSTRAP is not set: host:port of the brokers, separated by commas"]


def test_a_misspelt_setting_is_an_error_with_the_nearest_name() -> None:
    """A typing mistake never falls back to a default in silence."""
    found = problems(GOOD | {"SILOGATE_LOOKUP_TIMOUT": "5s"})
    assert found == ["SILOGATE_LOOKUP_TIMOUT is not a setting; did you mean SILOGATE_LOOKUP_TIMEOUT?"]


def test_only_the_exact_name_of_the_config_file_is_taken() -> None:
    """A misspelt SILOGATE_CONFIG would leave a whole file unread; the switches of the tests stay free."""
    assert problems(GOOD | {"SILOGATE_CONFIGG": "silogate.toml"}) == [
        "SILOGATE_CONFIGG is not a setting; did you mean SILOGATE_CONFIG?"
    ]
    assert read_settings(GOOD | {"SILOGATE_TEST_SEED": "5"}) == read_settings(GOOD)


@pytest.mark.parametrize("written", ['"postgresql://c/db"', "5", "[1]"])
def test_recipients_that_are_not_a_table_are_named(tmp_path: Path, written: str) -> None:
    """One address where a table of them belongs is said with the file and the right form."""
    config = tmp_path / "silogate.toml"
    config.write_text(f"recipients = {written}\n")
    (found,) = problems(GOOD | {"SILOGATE_CONFIG": str(config)})
    assert found.startswith(f"{config}: recipients is not a table; write [recipients]")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SILOGATE_LOOKUP_TIMEOUT", "5", "not a duration"),
        ("SILOGATE_ATTACHMENT_CAP", "8MB", "not a size"),
        ("SILOGATE_PORT", "99999", "less than or equal to 65535"),
        ("SILOGATE_REDIS_URL", "http://redis", "redis://host:6379/0"),
        ("SILOGATE_RECIPIENT_CONTRACTOR_URL", "contractor", "postgresql://user:password@host"),
    ],
)
def test_a_wrong_value_is_named_with_its_fix(name: str, value: str, says: str) -> None:
    """The sentence begins with the variable and says what would be right."""
    (found,) = problems(GOOD | {name: value})
    assert found.startswith(name)
    assert says in found


def test_secrets_are_never_shown() -> None:
    """Neither a problem nor the settings' text holds a password or a key."""
    found = problems(GOOD | {"SILOGATE_DATABASE_URL": "mysql://silogate:hunter2@db/x", "SILOGATE_PORT": "x"})
    settings = read_settings(GOOD | {"SILOGATE_REDIS_URL": "redis://:hunter2@redis"})
    shown = " ".join(found) + repr(settings) + str(settings)
    assert "hunter2" not in shown
    assert "AAAA" not in shown


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    """`…_FILE` reads the value from a mounted secret, without its line end."""
    secret = tmp_path / "ring"
    secret.write_text("1:BBBB\n")
    rest = {name: value for name, value in GOOD.items() if name != "SILOGATE_KEY_RING"}
    assert read_settings(rest | {"SILOGATE_KEY_RING_FILE": str(secret)}).key_ring.get_secret_value() == "1:BBBB"
    (found,) = problems(GOOD | {"SILOGATE_KEY_RING_FILE": str(tmp_path / "none")})
    assert found.startswith("SILOGATE_KEY_RING_FILE: the file it names cannot be read")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """One TOML file may hold everything; the environment overrides it; unknown names in it are errors too."""
    config = tmp_path / "silogate.toml"
    config.write_text('port = 9000\nadmin_port = 9001\n[recipients]\ncontractor = "postgresql://c/db"\n')
    settings = read_settings(GOOD | {"SILOGATE_CONFIG": str(config), "SILOGATE_PORT": "9100"})
    assert (settings.port, settings.admin_port) == (9100, 9001)
    assert settings.recipients["contractor"].get_secret_value() == "postgresql://c/db"
    config.write_text("prot = 9000\n")
    (found,) = problems(GOOD | {"SILOGATE_CONFIG": str(config)})
    assert "prot is not a setting; did you mean SILOGATE_PORT?" in found


def test_every_setting_says_what_it_is() -> None:
    """`silogate settings` can explain each one."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
