"""Every maximum of the protocol: tables, queues, lengths.

Whatever arrives beyond one of these is dropped or refused, and counted under
a reason (see ``Counters``).  Lengths are bytes.
"""

from __future__ import annotations

from typing import Final

MEMBERS_MAX: Final = 4096
GUESTS_MAX: Final = 4096
TOMBSTONES_MAX: Final = 8192
CLAIMS_MAX: Final = MEMBERS_MAX + TOMBSTONES_MAX + GUESTS_MAX
CANDIDATES_MAX: Final = 256
FAILED_ADDRESSES_MAX: Final = 256
LINKS_MAX: Final = 1100
HANDSHAKES_MAX: Final = 128
HANDSHAKES_PER_IP_MAX: Final = 64
KEYS_MAX: Final = 3

RECORD_MAX: Final = 1024
ENTRY_MAX: Final = 4096
STATUS_MAX: Final = 256  # bytes of a guest's status that travel with its entry
ADDRESSES_MAX: Final = 4
INSTANCE_ID_MAX: Final = 128
NAME_MAX: Final = 64
HOSTNAME_MAX: Final = 255
LABEL_MAX: Final = 64  # a capability or profile
LABELS_MAX: Final = 32
MESSAGE_ID_MAX: Final = 64
TYPE_MAX: Final = 128
CORRELATION_MAX: Final = 256

FRAME_MAX: Final = 65_535  # ciphertext, by its u16 length
CHUNK_MAX: Final = 32_768  # a larger message travels as chunks
PAYLOAD_MAX: Final = 16 * 1024 * 1024
LARGE_MESSAGE_MAX: Final = PAYLOAD_MAX + 32_768  # a payload with its envelope, encoded
RECEIPT_BYTES_MAX: Final = 4 * 1024 * 1024  # what says who took a message, encoded
GUEST_PAYLOAD_MAX: Final = 2 * 1024 * 1024
LARGE_MIN: Final = 256 * 1024  # a larger payload yields to everything small
PROGRESS_MIN: Final = 1024 * 1024  # of a larger one it is told how far it is
TRANSFERS_MAX: Final = 64  # half-received chunked messages a link
TRANSFER_BYTES_MAX: Final = 2 * LARGE_MESSAGE_MAX  # and all of them together
TRANSFER_WINDOW: Final = 256 * 1024  # chunks under way that the peer has not taken
TRANSFERS_AT_ONCE: Final = 8  # large payloads of up to PROGRESS_MIN, beside a larger one
NEWS_ITEMS_MAX: Final = 256  # in one NEWS
NEWS_ITEM_MAX: Final = ENTRY_MAX + 128  # a signed entry, with its signature and age
EVIDENCE_MAX: Final = 32
ACCUSERS_MAX: Final = 8  # named in one verdict
QUESTIONS_MAX: Final = 64  # open about one member, and answered by one vouch
HURRIES_MAX: Final = 16  # rounds of urgent news that need not wait for each other
NEWS_QUEUE_MAX: Final = 16_384  # subjects waiting to be told on a link
LINK_QUEUE_MAX: Final = 1024 * 1024  # bytes kept for a peer that does not read, bulk aside
REPAIRS_SERVED_MAX: Final = 8  # repair questions of one link answered in REPAIR_INTERVAL

MAILBOX_MESSAGES_MAX: Final = 1000
MAILBOX_BYTES_MAX: Final = 64 * 1024 * 1024
NODE_BYTES_MAX: Final = 256 * 1024 * 1024
STREAMS_MAX: Final = 65_536
REQUESTS_MAX: Final = 4096
WAITING_TARGETS_MAX: Final = 1024
MESSAGE_STATES_MAX: Final = 16_384
CAST_WINDOW: Final = 1024  # bits above a broadcast watermark

EPOCH_JUMP_MAX: Final = 2**32
INCARNATION_MAX: Final = 2**32

OUTBOX_STREAMS_MAX: Final = MEMBERS_MAX + GUESTS_MAX
FLIGHT_MAX: Final = 1024 * 1024  # sent to one home without a receipt yet
LARGE_FLIGHT_MAX: Final = PAYLOAD_MAX  # the same of payloads above LARGE_MIN
READ_BYTES_MAX: Final = 8 * 1024 * 1024  # payloads in one answer to a read
CALLS_MAX: Final = 4096  # registry calls that wait for another node
WAITS_MAX: Final = 4096  # reads that wait for mail of instances here
WAITS_PER_INSTANCE_MAX: Final = 16
ACKS_KEPT_MAX: Final = 16_384  # acknowledgements whose home does not answer
DEAD_LETTERS_MAX: Final = 1000
DEAD_LETTERS_BYTES_MAX: Final = 64 * 1024 * 1024
SENT_KEYS_MAX: Final = 4096  # of sends that may be repeated
SENT_KEYS_BYTES_MAX: Final = 8 * 1024 * 1024
ANSWERS_KEPT_MAX: Final = 1024  # answers that a broken link may have lost
ANSWERS_KEPT_BYTES_MAX: Final = 4 * 1024 * 1024
PARTS_AHEAD_MAX: Final = 64  # parts of one streamed answer that its reader has not taken
PARTS_BYTES_MAX: Final = 1024 * 1024  # of these; the one that passes it is the last
PARTS_KEPT_BYTES_MAX: Final = 64 * 1024 * 1024  # of all streamed answers of a node
CASTS_PASSING_MAX: Final = 4096  # broadcasts whose receipts are summed here
CAST_RESULTS_MAX: Final = 4096  # who took a broadcast here, told again if asked
RANGES_MAX: Final = 1024  # in one message
RELAYS_MAX: Final = 1100
STREAM_ENDS_MAX: Final = 1000  # remembered reasons of one stream, beyond plain "done"
REASON_MAX: Final = 1024
CAST_STREAMS_MAX: Final = 2 * MEMBERS_MAX  # roots' streams whose windows are kept
