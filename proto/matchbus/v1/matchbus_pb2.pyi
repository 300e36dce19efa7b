from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Side(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIDE_UNSPECIFIED: _ClassVar[Side]
    SIDE_BUY: _ClassVar[Side]
    SIDE_SELL: _ClassVar[Side]

class OrderType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_TYPE_UNSPECIFIED: _ClassVar[OrderType]
    ORDER_TYPE_LIMIT: _ClassVar[OrderType]
    ORDER_TYPE_MARKET: _ClassVar[OrderType]
    ORDER_TYPE_STOP: _ClassVar[OrderType]
    ORDER_TYPE_STOP_LIMIT: _ClassVar[OrderType]

class TimeInForce(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIME_IN_FORCE_UNSPECIFIED: _ClassVar[TimeInForce]
    TIME_IN_FORCE_GTC: _ClassVar[TimeInForce]
    TIME_IN_FORCE_IOC: _ClassVar[TimeInForce]
    TIME_IN_FORCE_FOK: _ClassVar[TimeInForce]
    TIME_IN_FORCE_DAY: _ClassVar[TimeInForce]
    TIME_IN_FORCE_GTD: _ClassVar[TimeInForce]

class SelfTradePrevention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SELF_TRADE_PREVENTION_UNSPECIFIED: _ClassVar[SelfTradePrevention]
    SELF_TRADE_PREVENTION_NONE: _ClassVar[SelfTradePrevention]
    SELF_TRADE_PREVENTION_CANCEL_NEWEST: _ClassVar[SelfTradePrevention]
    SELF_TRADE_PREVENTION_CANCEL_OLDEST: _ClassVar[SelfTradePrevention]
    SELF_TRADE_PREVENTION_CANCEL_BOTH: _ClassVar[SelfTradePrevention]
    SELF_TRADE_PREVENTION_DECREMENT: _ClassVar[SelfTradePrevention]

class OrderStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_STATUS_UNSPECIFIED: _ClassVar[OrderStatus]
    ORDER_STATUS_NEW: _ClassVar[OrderStatus]
    ORDER_STATUS_PARTIALLY_FILLED: _ClassVar[OrderStatus]
    ORDER_STATUS_FILLED: _ClassVar[OrderStatus]
    ORDER_STATUS_CANCELLED: _ClassVar[OrderStatus]
    ORDER_STATUS_REJECTED: _ClassVar[OrderStatus]
    ORDER_STATUS_EXPIRED: _ClassVar[OrderStatus]
    ORDER_STATUS_PENDING: _ClassVar[OrderStatus]
    ORDER_STATUS_PENDING_TRIGGER: _ClassVar[OrderStatus]

class RejectReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REJECT_REASON_UNSPECIFIED: _ClassVar[RejectReason]
    REJECT_REASON_EMPTY_COMMAND: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_CLIENT_ORDER_ID: _ClassVar[RejectReason]
    REJECT_REASON_UNKNOWN_SYMBOL: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_SIDE: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_ORDER_TYPE: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_TIME_IN_FORCE: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_SELF_TRADE_PREVENTION: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_PRICE: _ClassVar[RejectReason]
    REJECT_REASON_INVALID_QUANTITY: _ClassVar[RejectReason]
    REJECT_REASON_NOTIONAL_TOO_LARGE: _ClassVar[RejectReason]
    REJECT_REASON_UNSUPPORTED: _ClassVar[RejectReason]
    REJECT_REASON_CONFLICTING_INSTRUCTIONS: _ClassVar[RejectReason]
    REJECT_REASON_DUPLICATE_CLIENT_ORDER_ID: _ClassVar[RejectReason]
    REJECT_REASON_POST_ONLY_WOULD_CROSS: _ClassVar[RejectReason]
    REJECT_REASON_FOK_NEEDS_AWAY_LIQUIDITY: _ClassVar[RejectReason]
    REJECT_REASON_UNKNOWN_ORDER: _ClassVar[RejectReason]
    REJECT_REASON_ORDER_CLOSED: _ClassVar[RejectReason]
    REJECT_REASON_ORDER_PENDING: _ClassVar[RejectReason]

class Liquidity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIQUIDITY_UNSPECIFIED: _ClassVar[Liquidity]
    LIQUIDITY_MAKER: _ClassVar[Liquidity]
    LIQUIDITY_TAKER: _ClassVar[Liquidity]

class BookDetail(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOOK_DETAIL_UNSPECIFIED: _ClassVar[BookDetail]
    BOOK_DETAIL_LEVELS: _ClassVar[BookDetail]
    BOOK_DETAIL_ORDERS: _ClassVar[BookDetail]

class BookScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOOK_SCOPE_UNSPECIFIED: _ClassVar[BookScope]
    BOOK_SCOPE_ENGINE: _ClassVar[BookScope]
    BOOK_SCOPE_CONSOLIDATED: _ClassVar[BookScope]

class EngineState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_STATE_UNSPECIFIED: _ClassVar[EngineState]
    ENGINE_STATE_LIVE: _ClassVar[EngineState]
    ENGINE_STATE_SUSPECT: _ClassVar[EngineState]
    ENGINE_STATE_DOWN: _ClassVar[EngineState]

class EngineRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_ROLE_UNSPECIFIED: _ClassVar[EngineRole]
    ENGINE_ROLE_PRIMARY: _ClassVar[EngineRole]
    ENGINE_ROLE_STANDBY: _ClassVar[EngineRole]
SIDE_UNSPECIFIED: Side
SIDE_BUY: Side
SIDE_SELL: Side
ORDER_TYPE_UNSPECIFIED: OrderType
ORDER_TYPE_LIMIT: OrderType
ORDER_TYPE_MARKET: OrderType
ORDER_TYPE_STOP: OrderType
ORDER_TYPE_STOP_LIMIT: OrderType
TIME_IN_FORCE_UNSPECIFIED: TimeInForce
TIME_IN_FORCE_GTC: TimeInForce
TIME_IN_FORCE_IOC: TimeInForce
TIME_IN_FORCE_FOK: TimeInForce
TIME_IN_FORCE_DAY: TimeInForce
TIME_IN_FORCE_GTD: TimeInForce
SELF_TRADE_PREVENTION_UNSPECIFIED: SelfTradePrevention
SELF_TRADE_PREVENTION_NONE: SelfTradePrevention
SELF_TRADE_PREVENTION_CANCEL_NEWEST: SelfTradePrevention
SELF_TRADE_PREVENTION_CANCEL_OLDEST: SelfTradePrevention
SELF_TRADE_PREVENTION_CANCEL_BOTH: SelfTradePrevention
SELF_TRADE_PREVENTION_DECREMENT: SelfTradePrevention
ORDER_STATUS_UNSPECIFIED: OrderStatus
ORDER_STATUS_NEW: OrderStatus
ORDER_STATUS_PARTIALLY_FILLED: OrderStatus
ORDER_STATUS_FILLED: OrderStatus
ORDER_STATUS_CANCELLED: OrderStatus
ORDER_STATUS_REJECTED: OrderStatus
ORDER_STATUS_EXPIRED: OrderStatus
ORDER_STATUS_PENDING: OrderStatus
ORDER_STATUS_PENDING_TRIGGER: OrderStatus
REJECT_REASON_UNSPECIFIED: RejectReason
REJECT_REASON_EMPTY_COMMAND: RejectReason
REJECT_REASON_INVALID_CLIENT_ORDER_ID: RejectReason
REJECT_REASON_UNKNOWN_SYMBOL: RejectReason
REJECT_REASON_INVALID_SIDE: RejectReason
REJECT_REASON_INVALID_ORDER_TYPE: RejectReason
REJECT_REASON_INVALID_TIME_IN_FORCE: RejectReason
REJECT_REASON_INVALID_SELF_TRADE_PREVENTION: RejectReason
REJECT_REASON_INVALID_PRICE: RejectReason
REJECT_REASON_INVALID_QUANTITY: RejectReason
REJECT_REASON_NOTIONAL_TOO_LARGE: RejectReason
REJECT_REASON_UNSUPPORTED: RejectReason
REJECT_REASON_CONFLICTING_INSTRUCTIONS: RejectReason
REJECT_REASON_DUPLICATE_CLIENT_ORDER_ID: RejectReason
REJECT_REASON_POST_ONLY_WOULD_CROSS: RejectReason
REJECT_REASON_FOK_NEEDS_AWAY_LIQUIDITY: RejectReason
REJECT_REASON_UNKNOWN_ORDER: RejectReason
REJECT_REASON_ORDER_CLOSED: RejectReason
REJECT_REASON_ORDER_PENDING: RejectReason
LIQUIDITY_UNSPECIFIED: Liquidity
LIQUIDITY_MAKER: Liquidity
LIQUIDITY_TAKER: Liquidity
BOOK_DETAIL_UNSPECIFIED: BookDetail
BOOK_DETAIL_LEVELS: BookDetail
BOOK_DETAIL_ORDERS: BookDetail
BOOK_SCOPE_UNSPECIFIED: BookScope
BOOK_SCOPE_ENGINE: BookScope
BOOK_SCOPE_CONSOLIDATED: BookScope
ENGINE_STATE_UNSPECIFIED: EngineState
ENGINE_STATE_LIVE: EngineState
ENGINE_STATE_SUSPECT: EngineState
ENGINE_STATE_DOWN: EngineState
ENGINE_ROLE_UNSPECIFIED: EngineRole
ENGINE_ROLE_PRIMARY: EngineRole
ENGINE_ROLE_STANDBY: EngineRole

class NewOrder(_message.Message):
    __slots__ = ("client_order_id", "symbol", "side", "type", "time_in_force", "price", "quantity", "stop_price", "display_quantity", "post_only", "self_trade_prevention", "expire_time_ns", "do_not_route")
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    POST_ONLY_FIELD_NUMBER: _ClassVar[int]
    SELF_TRADE_PREVENTION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    DO_NOT_ROUTE_FIELD_NUMBER: _ClassVar[int]
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    quantity: int
    stop_price: int
    display_quantity: int
    post_only: bool
    self_trade_prevention: SelfTradePrevention
    expire_time_ns: int
    do_not_route: bool
    def __init__(self, client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., type: _Optional[_Union[OrderType, str]] = ..., time_in_force: _Optional[_Union[TimeInForce, str]] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., stop_price: _Optional[int] = ..., display_quantity: _Optional[int] = ..., post_only: _Optional[bool] = ..., self_trade_prevention: _Optional[_Union[SelfTradePrevention, str]] = ..., expire_time_ns: _Optional[int] = ..., do_not_route: _Optional[bool] = ...) -> None: ...

class CancelOrderRequest(_message.Message):
    __slots__ = ("order_id", "client_order_id")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    client_order_id: str
    def __init__(self, order_id: _Optional[int] = ..., client_order_id: _Optional[str] = ...) -> None: ...

class ReplaceOrderRequest(_message.Message):
    __slots__ = ("order_id", "client_order_id", "price", "quantity")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    client_order_id: str
    price: int
    quantity: int
    def __init__(self, order_id: _Optional[int] = ..., client_order_id: _Optional[str] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ...) -> None: ...

class CancelAllRequest(_message.Message):
    __slots__ = ("symbol", "side")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    side: Side
    def __init__(self, symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ...) -> None: ...

class CancelAllReply(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class Fill(_message.Message):
    __slots__ = ("sequence", "execution_id", "order_id", "client_order_id", "symbol", "side", "price", "quantity", "liquidity", "cumulative_quantity", "leaves_quantity", "engine_id", "timestamp_ns", "fee", "contra_order_id")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    LIQUIDITY_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    LEAVES_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    FEE_FIELD_NUMBER: _ClassVar[int]
    CONTRA_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    execution_id: int
    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    price: int
    quantity: int
    liquidity: Liquidity
    cumulative_quantity: int
    leaves_quantity: int
    engine_id: int
    timestamp_ns: int
    fee: int
    contra_order_id: int
    def __init__(self, sequence: _Optional[int] = ..., execution_id: _Optional[int] = ..., order_id: _Optional[int] = ..., client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., liquidity: _Optional[_Union[Liquidity, str]] = ..., cumulative_quantity: _Optional[int] = ..., leaves_quantity: _Optional[int] = ..., engine_id: _Optional[int] = ..., timestamp_ns: _Optional[int] = ..., fee: _Optional[int] = ..., contra_order_id: _Optional[int] = ...) -> None: ...

class FillBatch(_message.Message):
    __slots__ = ("fills",)
    FILLS_FIELD_NUMBER: _ClassVar[int]
    fills: _containers.RepeatedCompositeFieldContainer[Fill]
    def __init__(self, fills: _Optional[_Iterable[_Union[Fill, _Mapping]]] = ...) -> None: ...

class PreventedMatch(_message.Message):
    __slots__ = ("symbol", "taker_order_id", "maker_order_id", "price", "quantity", "mode")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TAKER_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    MAKER_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    taker_order_id: int
    maker_order_id: int
    price: int
    quantity: int
    mode: SelfTradePrevention
    def __init__(self, symbol: _Optional[str] = ..., taker_order_id: _Optional[int] = ..., maker_order_id: _Optional[int] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., mode: _Optional[_Union[SelfTradePrevention, str]] = ...) -> None: ...

class OrderReply(_message.Message):
    __slots__ = ("client_order_id", "order_id", "status", "reject_reason", "reject_text", "cumulative_quantity", "leaves_quantity", "average_price", "fills", "duplicate", "prevented", "fills_omitted")
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REJECT_REASON_FIELD_NUMBER: _ClassVar[int]
    REJECT_TEXT_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    LEAVES_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_PRICE_FIELD_NUMBER: _ClassVar[int]
    FILLS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    PREVENTED_FIELD_NUMBER: _ClassVar[int]
    FILLS_OMITTED_FIELD_NUMBER: _ClassVar[int]
    client_order_id: str
    order_id: int
    status: OrderStatus
    reject_reason: RejectReason
    reject_text: str
    cumulative_quantity: int
    leaves_quantity: int
    average_price: float
    fills: _containers.RepeatedCompositeFieldContainer[Fill]
    duplicate: bool
    prevented: _containers.RepeatedCompositeFieldContainer[PreventedMatch]
    fills_omitted: int
    def __init__(self, client_order_id: _Optional[str] = ..., order_id: _Optional[int] = ..., status: _Optional[_Union[OrderStatus, str]] = ..., reject_reason: _Optional[_Union[RejectReason, str]] = ..., reject_text: _Optional[str] = ..., cumulative_quantity: _Optional[int] = ..., leaves_quantity: _Optional[int] = ..., average_price: _Optional[float] = ..., fills: _Optional[_Iterable[_Union[Fill, _Mapping]]] = ..., duplicate: _Optional[bool] = ..., prevented: _Optional[_Iterable[_Union[PreventedMatch, _Mapping]]] = ..., fills_omitted: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("new", "cancel", "replace")
    NEW_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    new: NewOrder
    cancel: CancelOrderRequest
    replace: ReplaceOrderRequest
    def __init__(self, new: _Optional[_Union[NewOrder, _Mapping]] = ..., cancel: _Optional[_Union[CancelOrderRequest, _Mapping]] = ..., replace: _Optional[_Union[ReplaceOrderRequest, _Mapping]] = ...) -> None: ...

class OrderEntryRequest(_message.Message):
    __slots__ = ("commands",)
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class OrderEntryResponse(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[OrderReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[OrderReply, _Mapping]]] = ...) -> None: ...

class GetFillsRequest(_message.Message):
    __slots__ = ("since_sequence", "follow")
    SINCE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    since_sequence: int
    follow: bool
    def __init__(self, since_sequence: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class GetOrderRequest(_message.Message):
    __slots__ = ("order_id", "client_order_id")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    client_order_id: str
    def __init__(self, order_id: _Optional[int] = ..., client_order_id: _Optional[str] = ...) -> None: ...

class OrderState(_message.Message):
    __slots__ = ("order_id", "client_order_id", "symbol", "side", "type", "time_in_force", "price", "quantity", "cumulative_quantity", "leaves_quantity", "cancelled_quantity", "status", "average_price", "post_only", "self_trade_prevention")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    LEAVES_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_QUANTITY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_PRICE_FIELD_NUMBER: _ClassVar[int]
    POST_ONLY_FIELD_NUMBER: _ClassVar[int]
    SELF_TRADE_PREVENTION_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    quantity: int
    cumulative_quantity: int
    leaves_quantity: int
    cancelled_quantity: int
    status: OrderStatus
    average_price: float
    post_only: bool
    self_trade_prevention: SelfTradePrevention
    def __init__(self, order_id: _Optional[int] = ..., client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., type: _Optional[_Union[OrderType, str]] = ..., time_in_force: _Optional[_Union[TimeInForce, str]] = ..., price: _Optional[int] = ..., quantity: _Optional[int] = ..., cumulative_quantity: _Optional[int] = ..., leaves_quantity: _Optional[int] = ..., cancelled_quantity: _Optional[int] = ..., status: _Optional[_Union[OrderStatus, str]] = ..., average_price: _Optional[float] = ..., post_only: _Optional[bool] = ..., self_trade_prevention: _Optional[_Union[SelfTradePrevention, str]] = ...) -> None: ...

class ListOpenOrdersRequest(_message.Message):
    __slots__ = ("symbol",)
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    def __init__(self, symbol: _Optional[str] = ...) -> None: ...

class ListOpenOrdersReply(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[OrderState]
    def __init__(self, orders: _Optional[_Iterable[_Union[OrderState, _Mapping]]] = ...) -> None: ...

class GetOrderBookRequest(_message.Message):
    __slots__ = ("symbol", "depth", "detail", "scope")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    depth: int
    detail: BookDetail
    scope: BookScope
    def __init__(self, symbol: _Optional[str] = ..., depth: _Optional[int] = ..., detail: _Optional[_Union[BookDetail, str]] = ..., scope: _Optional[_Union[BookScope, str]] = ...) -> None: ...

class BookOrder(_message.Message):
    __slots__ = ("order_id", "quantity")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    quantity: int
    def __init__(self, order_id: _Optional[int] = ..., quantity: _Optional[int] = ...) -> None: ...

class EngineQuantity(_message.Message):
    __slots__ = ("engine", "quantity", "order_count")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    ORDER_COUNT_FIELD_NUMBER: _ClassVar[int]
    engine: int
    quantity: int
    order_count: int
    def __init__(self, engine: _Optional[int] = ..., quantity: _Optional[int] = ..., order_count: _Optional[int] = ...) -> None: ...

class Level(_message.Message):
    __slots__ = ("price", "quantity", "order_count", "orders", "engines")
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    ORDER_COUNT_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    price: int
    quantity: int
    order_count: int
    orders: _containers.RepeatedCompositeFieldContainer[BookOrder]
    engines: _containers.RepeatedCompositeFieldContainer[EngineQuantity]
    def __init__(self, price: _Optional[int] = ..., quantity: _Optional[int] = ..., order_count: _Optional[int] = ..., orders: _Optional[_Iterable[_Union[BookOrder, _Mapping]]] = ..., engines: _Optional[_Iterable[_Union[EngineQuantity, _Mapping]]] = ...) -> None: ...

class OrderBook(_message.Message):
    __slots__ = ("symbol", "sequence", "bids", "asks")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BIDS_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    sequence: int
    bids: _containers.RepeatedCompositeFieldContainer[Level]
    asks: _containers.RepeatedCompositeFieldContainer[Level]
    def __init__(self, symbol: _Optional[str] = ..., sequence: _Optional[int] = ..., bids: _Optional[_Iterable[_Union[Level, _Mapping]]] = ..., asks: _Optional[_Iterable[_Union[Level, _Mapping]]] = ...) -> None: ...

class Instrument(_message.Message):
    __slots__ = ("symbol", "tick_size", "lot_size", "market_collar_percent")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TICK_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOT_SIZE_FIELD_NUMBER: _ClassVar[int]
    MARKET_COLLAR_PERCENT_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    tick_size: str
    lot_size: str
    market_collar_percent: str
    def __init__(self, symbol: _Optional[str] = ..., tick_size: _Optional[str] = ..., lot_size: _Optional[str] = ..., market_collar_percent: _Optional[str] = ...) -> None: ...

class RegisterClientRequest(_message.Message):
    __slots__ = ("client_id", "password", "secret", "preferred_engine")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_ENGINE_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    password: str
    secret: str
    preferred_engine: int
    def __init__(self, client_id: _Optional[str] = ..., password: _Optional[str] = ..., secret: _Optional[str] = ..., preferred_engine: _Optional[int] = ...) -> None: ...

class RegisterClientReply(_message.Message):
    __slots__ = ("token", "engine", "engine_address", "instruments")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INSTRUMENTS_FIELD_NUMBER: _ClassVar[int]
    token: str
    engine: int
    engine_address: str
    instruments: _containers.RepeatedCompositeFieldContainer[Instrument]
    def __init__(self, token: _Optional[str] = ..., engine: _Optional[int] = ..., engine_address: _Optional[str] = ..., instruments: _Optional[_Iterable[_Union[Instrument, _Mapping]]] = ...) -> None: ...

class ListInstrumentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListInstrumentsReply(_message.Message):
    __slots__ = ("instruments",)
    INSTRUMENTS_FIELD_NUMBER: _ClassVar[int]
    instruments: _containers.RepeatedCompositeFieldContainer[Instrument]
    def __init__(self, instruments: _Optional[_Iterable[_Union[Instrument, _Mapping]]] = ...) -> None: ...

class ListEnginesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Engine(_message.Message):
    __slots__ = ("engine", "state", "epoch", "address", "lag_ns", "reason", "role", "batch_number", "lag_batches")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAG_NS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    BATCH_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LAG_BATCHES_FIELD_NUMBER: _ClassVar[int]
    engine: int
    state: EngineState
    epoch: int
    address: str
    lag_ns: int
    reason: str
    role: EngineRole
    batch_number: int
    lag_batches: int
    def __init__(self, engine: _Optional[int] = ..., state: _Optional[_Union[EngineState, str]] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., lag_ns: _Optional[int] = ..., reason: _Optional[str] = ..., role: _Optional[_Union[EngineRole, str]] = ..., batch_number: _Optional[int] = ..., lag_batches: _Optional[int] = ...) -> None: ...

class ListEnginesReply(_message.Message):
    __slots__ = ("engines",)
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    engines: _containers.RepeatedCompositeFieldContainer[Engine]
    def __init__(self, engines: _Optional[_Iterable[_Union[Engine, _Mapping]]] = ...) -> None: ...

class GetPositionsRequest(_message.Message):
    __slots__ = ("symbol",)
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    def __init__(self, symbol: _Optional[str] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("symbol", "position", "average_price", "realized_pnl", "fees")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_PRICE_FIELD_NUMBER: _ClassVar[int]
    REALIZED_PNL_FIELD_NUMBER: _ClassVar[int]
    FEES_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    position: int
    average_price: float
    realized_pnl: int
    fees: int
    def __init__(self, symbol: _Optional[str] = ..., position: _Optional[int] = ..., average_price: _Optional[float] = ..., realized_pnl: _Optional[int] = ..., fees: _Optional[int] = ...) -> None: ...

class GetPositionsReply(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...

class GetConsolidatedBookRequest(_message.Message):
    __slots__ = ("symbol", "depth")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    depth: int
    def __init__(self, symbol: _Optional[str] = ..., depth: _Optional[int] = ...) -> None: ...

class BestQuote(_message.Message):
    __slots__ = ("price", "quantity")
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    price: int
    quantity: int
    def __init__(self, price: _Optional[int] = ..., quantity: _Optional[int] = ...) -> None: ...

class ConsolidatedBook(_message.Message):
    __slots__ = ("symbol", "bids", "asks", "best_bid", "best_ask")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    BIDS_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    BEST_BID_FIELD_NUMBER: _ClassVar[int]
    BEST_ASK_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    bids: _containers.RepeatedCompositeFieldContainer[Level]
    asks: _containers.RepeatedCompositeFieldContainer[Level]
    best_bid: BestQuote
    best_ask: BestQuote
    def __init__(self, symbol: _Optional[str] = ..., bids: _Optional[_Iterable[_Union[Level, _Mapping]]] = ..., asks: _Optional[_Iterable[_Union[Level, _Mapping]]] = ..., best_bid: _Optional[_Union[BestQuote, _Mapping]] = ..., best_ask: _Optional[_Union[BestQuote, _Mapping]] = ...) -> None: ...
