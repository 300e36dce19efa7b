"""What a journal's commands say."""

from typing import get_args

from bus.records import FORMAT
from engine.commands import AwayQuote, Command

_SAID_IN_2 = {
    "instrument": "symbol tick_size lot_size market_collar_bps",
    "epoch": "epoch first_leg_id",
    "new": "client client_order_id symbol side type time_in_force price quantity stop_price display_quantity"
    " post_only self_trade_prevention expire_time_ns do_not_route away",
    "cancel": "client order_id client_order_id",
    "replace": "client order_id client_order_id price quantity away",
    "cancel_all": "client symbol side most",
    "leg": "leg_id sender peer_epoch order_id symbol side limit quantity settled_below",
    "leg_query": "leg_id sender",
    "leg_result": "leg_id fills away",
    "uncross": "symbol side away",
    "AwayQuote": "engine epoch book_sequence levels cut",
}
"""The fields of each command, and of what they carry, in a record of format 2."""


def test_the_record_format_rises_with_the_commands() -> None:
    """An engine of an earlier version must refuse what it would only half understand."""
    kinds = (*get_args(Command), AwayQuote)
    said = {kind.__struct_config__.tag or kind.__name__: " ".join(kind.__struct_fields__) for kind in kinds}
    assert (FORMAT, said) == (2, _SAID_IN_2), "raise bus.records.FORMAT, then write down here what it says"
