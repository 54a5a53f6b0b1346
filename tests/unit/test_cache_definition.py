"""A lookup's SQL is one SELECT with named parameters, and says so when it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cache.answer import AsOf
from cache.definition import (
    CircleTag,
    IndexTag,
    InvalidLookup,
    LookupDefinition,
    TableTag,
    TagRule,
    check_tags,
    compile_many,
    compile_one,
    compile_sql,
)
from cache.values import VALUE_TYPES, Index, Tagger

TAGGER = Tagger(
    "town",
    {
        "address": (
            Index("postcode", ("postcode",), "value", ("postcode",)),
            Index("place", ("easting", "northing"), "tile", ("easting", "northing")),
            Index("street", ("street_name",), "name", ("name",)),
        )
    },
    b"t" * 32,
    "1",
)
LOOKUP = LookupDefinition(
    name="addresses-by-postcode",
    silo="town",
    parameters={"postcode": VALUE_TYPES["postcode"]},
    sql="select address from address where postcode = :postcode",
    shape="many",
    columns=("address",),
    tags={"address": IndexTag("postcode", ("postcode",))},
    ttl_s=60,
    soft_ttl_s=30,
    negative_ttl_s=30,
    stale_for_s=60,
    max_age_s=None,
    personal=False,
)

REFUSED = {
    "no parameter in the SQL": ("select address from address", "does not use the parameter postcode"),
    "an unknown parameter": ("select 1 where :postcode = :postkode", ":postkode is not a parameter"),
    "a parameter in a comment only": ("select 1 -- :postcode", "does not use"),
    "a parameter in a literal only": ("select ':postcode'", "does not use"),
    "two statements": ("select :postcode; select 2", "one statement"),
    "two statements after a comment": ("select :postcode /* ; */ ; -- ;\n select 2", "one statement"),
    "nothing": ("  -- nothing\n", "one SELECT or WITH"),
    "an update": ("update address set address = :postcode", "one SELECT or WITH"),
    "a writing expression": ("with x as (delete from address returning *) select :postcode", "delete is refused"),
    "select into": ("select :postcode into other", "into is refused"),
    "a lock": ("select :postcode from address for update", "update is refused"),
    "a numbered parameter": ("select :postcode, $1", "named :like_this"),
    "a bracket that closes the wrapping": ("select :postcode) union (select 1", "never opened"),
    "a bracket left open": ("select (:postcode", "not closed"),
    "an open literal": ("select :postcode, 'it", "not closed"),
    "an open identifier": ('select :postcode as "it', "not closed"),
    "an open comment": ("select :postcode /* /* */", "not closed"),
    "an open dollar quote": ("select :postcode, $x$ it $y$", "not closed"),
    "values": ("values (:postcode)", "one SELECT or WITH"),
}


@pytest.mark.parametrize(("sql", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_one_select_is_refused(sql: str, why: str) -> None:
    """The message says what to mend."""
    with pytest.raises(InvalidLookup, match=why.replace("(", r"\(")):
        compile_sql(replace(LOOKUP, sql=sql))
    with pytest.raises(InvalidLookup):
        compile_many(replace(LOOKUP, sql=sql))


def test_names_become_numbers_and_columns_of_the_batch() -> None:
    """Casts and literals stay what they are."""
    plain, batch = compile_sql(replace(LOOKUP, sql="select ':postcode', 1::int where x = :postcode::text; -- end"))
    assert plain == "select ':postcode', 1::int where x = ($1::text)::text -- end"
    assert "select ':postcode', 1::int where x = sg_key.sg1::text -- end\n" in batch
    assert "unnest($1::text[]) with ordinality" in batch


STREETS = replace(
    LOOKUP,
    parameters={"street": VALUE_TYPES["prefix"]},
    sql='select street from address where name collate "C" >= :street and name collate "C" < :street_below',
    tags={"address": IndexTag("street", ("street",))},
)


def test_a_beginning_brings_its_end_into_the_sql() -> None:
    """The end is the beginning with the last code point added, in every form; no argument is added for it."""
    plain, batch = compile_sql(STREETS)
    assert plain.endswith("""\"C\" >= ($1::text) and name collate "C" < (($1::text) || U&'\\+10FFFF')""")
    assert """< (sg_key.sg1 || U&'\\+10FFFF')""" in batch
    assert "unnest($1::text[]) with" in compile_many(STREETS)
    assert "||" in compile_one(STREETS)
    check_tags(STREETS, TAGGER)
    for kind in ("name", "text"):
        with pytest.raises(InvalidLookup, match=":street_below is not a parameter; there are street"):
            compile_sql(replace(STREETS, parameters={"street": VALUE_TYPES[kind]}))
    own = {"street": VALUE_TYPES["prefix"], "street_below": VALUE_TYPES["name"]}
    assert "< ($2::text)" in compile_sql(replace(STREETS, parameters=own))[0]


def test_many_questions_outside_a_silo_have_no_position() -> None:
    """The gateway's own cases are read as of now."""
    sql = compile_many(LOOKUP)
    assert "progress" not in sql
    assert "unnest($1::text[]) with ordinality as sg_key(sg1, sg_ord)" in sql


def test_a_word_that_writes_may_be_a_column_when_it_is_quoted() -> None:
    """The refusal says how to write it."""
    plain, _ = compile_sql(replace(LOOKUP, sql='select "update", updated from address where postcode = :postcode'))
    assert '"update"' in plain


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parameters": {}}, "at least one parameter"),
        ({"ttl_s": 8 * 86400.0, "stale_for_s": 1.0}, "longer than 8 days"),
    ],
)
def test_what_no_entry_could_keep_is_refused(change: dict[str, Any], why: str) -> None:
    """Without a parameter there is no key; and tags are not kept for ever."""
    with pytest.raises(InvalidLookup, match=why):
        compile_sql(replace(LOOKUP, **change))


def test_the_hash_changes_with_the_answer_and_not_with_how_long_it_is_kept() -> None:
    """Entries of another SQL, shape or set of columns are never taken for ours."""
    others = [
        replace(LOOKUP, sql=LOOKUP.sql + " order by 1"),
        replace(LOOKUP, shape="one"),
        replace(LOOKUP, columns=("address", "postcode")),
        replace(LOOKUP, name="other"),
        replace(LOOKUP, parameters={"postcode": VALUE_TYPES["text"]}),
        replace(LOOKUP, tags={"address": TableTag()}),
    ]
    assert len({definition.hash for definition in (*others, LOOKUP)}) == 7
    assert replace(LOOKUP, ttl_s=1, max_age_s=5).hash == LOOKUP.hash


RULES: dict[str, tuple[TagRule, str]] = {
    "no such index": (IndexTag("road", ("postcode",)), "no index road"),
    "no such parameter": (IndexTag("postcode", ("post",)), "post is not a parameter"),
    "a parameter of another type": (IndexTag("postcode", ("text",)), "of type postcode"),
    "a beginning of whole values": (IndexTag("postcode", ("street",)), "of type postcode"),
    "free text for a beginning": (IndexTag("street", ("text",)), "of type name"),
    "a tile asked by value": (IndexTag("place", ("easting", "northing")), "kind tile"),
    "a value asked by circle": (CircleTag("postcode", "easting", "northing", "metres"), "kind value"),
    "a circle of the wrong parameters": (CircleTag("place", "northing", "easting", "metres"), "of type easting"),
}


@pytest.mark.parametrize(("rule", "why"), RULES.values(), ids=RULES.keys())
def test_a_tag_rule_that_would_miss_changes_is_refused(rule: TagRule, why: str) -> None:
    """Parameters go through the very normalisers that the rows go through, or not at all."""
    parameters = {name: VALUE_TYPES[name] for name in ("postcode", "text", "easting", "northing", "metres")}
    parameters["street"] = VALUE_TYPES["prefix"]
    with pytest.raises(InvalidLookup, match=why):
        check_tags(replace(LOOKUP, parameters=parameters, tags={"address": rule}), TAGGER)


def test_a_lookup_must_say_what_changes_touch_it() -> None:
    """In a table that the silo has, and for the silo that it asks."""
    check_tags(LOOKUP, TAGGER)
    for change, why in (({"tags": {}}, "does not say"), ({"tags": {"street": TableTag()}}, "not a table")):
        with pytest.raises(InvalidLookup, match=why):
            check_tags(replace(LOOKUP, **change), TAGGER)
    with pytest.raises(InvalidLookup, match="asks the silo city"):
        check_tags(replace(LOOKUP, silo="city"), TAGGER)


def test_a_token_comes_back_as_it_went_out() -> None:
    """What a client sends back is read into the same position."""
    as_of = AsOf("town", "0f" * 16, 42)
    assert AsOf.parse(as_of.token) == as_of
    assert as_of.met_by("0f" * 16, 42)
    assert not as_of.met_by("0f" * 16, 41)
    assert not as_of.met_by("00" * 16, 99)


@pytest.mark.parametrize("token", ["", "town", "town:e", "town:e:x", "town:e:1:2", "town:e:-1", "Town:e:1", "a:b c:1"])
def test_a_token_that_we_did_not_give_out_is_refused(token: str) -> None:
    """Nothing else that a client writes is taken for a position."""
    with pytest.raises(ValueError, match="not a token"):
        AsOf.parse(token)
