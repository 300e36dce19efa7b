"""docs/reference.md is what the source says, and the source says something of everything."""

import re

import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus import messages, view_messages
from engine import commands
from tests.engine.test_matching import MET_ELSEWHERE
from tests.reference_page import (
    PAGE,
    ROOT,
    SERVICERS,
    TRADING,
    Contract,
    endings,
    page,
    structs,
    subject_rows,
    trading_page,
)


@pytest.fixture(scope="module")
def contract() -> Contract:
    """The contract with its comments."""
    return Contract()


def test_the_page_is_what_the_source_says(contract: Contract) -> None:
    """Nobody edits the page, or its sources without `make reference`."""
    assert PAGE.read_text() == page(contract), "run `make reference`"


def test_the_refusals_of_the_trading_page_are_the_contracts(contract: Contract) -> None:
    """The table that traders read says what the contract says."""
    assert TRADING.read_text() == trading_page(contract), "run `make reference`"


def test_the_contract_says_what_everything_is(contract: Contract) -> None:
    """Each service, call, message and enum has a comment."""
    things = [
        *((name, text) for name, text, _ in contract.messages()),
        *((name, text) for name, text, _ in contract.enums()),
        *((name, text) for name, text, _ in contract.services()),
        *((name, text) for _, _, calls in contract.services() for name, _, _, text in calls),
    ]
    assert [name for name, text in things if not text] == []


def test_every_value_says_what_it_means(contract: Contract) -> None:
    """Each value of an enum that is not plain from its name, SIDE_BUY, has a comment."""
    silent = [
        name
        for _, _, values in contract.enums()
        for number, name, text in values
        if number and not text and not name.startswith("SIDE_")
    ]
    assert silent == []


def test_every_refusal_says_what_to_do(contract: Contract) -> None:
    """The contract's comments give each RejectReason a meaning and a `Do:`."""
    assert [refusal.name for refusal in contract.refusals()] == [
        name.removeprefix("REJECT_REASON_") for name in pb.RejectReason.keys()[1:]
    ]


def test_every_refusal_is_met_by_a_test() -> None:
    """The random flow of test_matching meets each but some, and the test named for those names the reason."""
    for reason, (file, test) in MET_ELSEWHERE.items():
        text = (ROOT / "tests" / file).read_text()
        if test:
            text = re.split(rf"^(?:async )?def {test}\(", text, flags=re.MULTILINE)[1].partition("\n\n\n")[0]
        assert reason.name in text, reason


def test_subjects_and_messages_have_a_meaning() -> None:
    """Whatever travels over NATS says what it is, and each subject of a message is one that is spelled."""
    assert [name for _, name, text in subject_rows() if not text] == []
    spelled = {spelling for spelling, _, _ in subject_rows()}
    for module in (messages, view_messages, commands):
        for kind, meaning, _ in structs(module):
            assert meaning, kind
            assert set(re.findall(r"^On `([^`]+)`", meaning)) <= spelled, kind


def test_every_call_that_needs_a_token_may_end_unauthenticated(contract: Contract) -> None:
    """What is read from the servicers is there: calls with a token end without one, the others do not."""
    unauthenticated = {
        call
        for service, _, calls in contract.services()
        for ending in endings(SERVICERS[service], [name for name, *_ in calls])
        for call in ending.calls
        if ending.status == "UNAUTHENTICATED"
    }
    public = {"ListInstruments", "ListEngines", "GetConsolidatedBook"}
    every = {name for _, _, calls in contract.services() for name, *_ in calls}
    assert unauthenticated == every - public


def test_the_trading_page_says_what_to_do_about_every_status(contract: Contract) -> None:
    """Its table has a row for each status that a servicer gives, with something said of that servicer."""
    rows = re.findall(r"^\| ([A-Z_]+) \|([^|]*)\|([^|]*)\| [^|]+ \|$", TRADING.read_text(), re.MULTILINE)
    said = {status: {"MatchingEngine": engine, "Exchange": exchange} for status, engine, exchange in rows}
    for service, _, calls in contract.services():
        for ending in endings(SERVICERS[service], [name for name, *_ in calls]):
            assert said[ending.status][service].strip(), (service, ending)


def test_links_within_the_page_lead_somewhere() -> None:
    """Each type links to its own heading, of which there is one."""
    text = PAGE.read_text()
    headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= set(headings)
