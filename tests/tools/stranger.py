"""A client in Python, made from the proto files alone: appends, reads and follows.

usage: stranger.py PROTO_DIRECTORY GENERATED_DIRECTORY ADDRESS
"""

import queue
import sys
import zlib
from pathlib import Path

import grpc
from grpc_tools import protoc


def generate(proto: str, out: str) -> None:
    files = sorted(str(path.relative_to(proto)) for path in Path(proto).glob("quipu/v1/*.proto"))
    include = str(Path(protoc.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{proto}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0, "the proto files are not accepted"
    sys.path.insert(0, out)


def main() -> None:
    proto, out, address = sys.argv[1:]
    generate(proto, out)
    from quipu.v1 import log_pb2, log_pb2_grpc, record_pb2, topic_pb2, topic_pb2_grpc

    channel = grpc.insecure_channel(address)
    log = log_pb2_grpc.LogServiceStub(channel)
    topics = topic_pb2_grpc.TopicServiceStub(channel)
    topics.CreateTopic(topic_pb2.CreateTopicRequest(name="stranger"))

    def record(number: int) -> record_pb2.Record:
        header = record_pb2.Header(name="n", value=b"%d" % number)
        return record_pb2.Record(key=b"k%d" % (number % 3), type="t", headers=[header], payload=b"%d" % number)

    def crc(records) -> int:
        return zlib.crc32(log_pb2.TopicAppend(records=records).SerializeToString(deterministic=True))

    # Unary appends.
    for first in range(0, 50, 10):
        records = [record(number) for number in range(first, first + 10)]
        append = log_pb2.TopicAppend(topic="stranger", records=records, records_crc=crc(records))
        answer = log.Append(log_pb2.AppendRequest(appends=[append]))
        assert answer.appended[0].first_offset == first, answer
        assert answer.appended[0].durability == record_pb2.DURABILITY_SYNCED, answer

    # A session.
    requests: queue.Queue = queue.Queue()
    session = log.AppendSession(iter(requests.get, None))
    assert next(session).granted_bytes > 0
    for number in range(50, 100):
        append = log_pb2.TopicAppend(topic="stranger", records=[record(number)])
        requests.put(log_pb2.AppendSessionRequest(append=log_pb2.AppendRequest(appends=[append])))
    requests.put(None)
    offsets = [answer.response.appended[0].first_offset for answer in session]
    assert offsets == list(range(50, 100)), offsets

    def check(batch, offset: int) -> int:
        assert crc(batch.records) == batch.records_crc
        for index, found in enumerate(batch.records):
            assert (batch.offsets[index] if batch.offsets else batch.first_offset + index) == offset
            assert found == record(offset), found
            offset += 1
        return offset

    # What is there.
    read = 0
    for answer in log.Read(log_pb2.ReadRequest(topic="stranger")):
        for batch in answer.batches.batches:
            read = check(batch, read)
    assert read == 100, read
    print(f"read {read} records")

    # What comes.
    subscription = log.Subscribe(log_pb2.SubscribeRequest(topic="stranger"))
    followed = 0
    for answer in subscription:
        for batch in answer.batches.batches:
            followed = check(batch, followed)
        if answer.HasField("caught_up"):
            records = [record(number) for number in range(100, 150)]
            log.Append(log_pb2.AppendRequest(appends=[log_pb2.TopicAppend(topic="stranger", records=records)]))
        if followed == 150:
            subscription.cancel()
            break
    print(f"followed {followed} records")

    # An error has its reason.
    try:
        log.GetBounds(log_pb2.GetBoundsRequest(topic="missing"))
        raise AssertionError("a topic that is not there was found")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert b"TOPIC_NOT_FOUND" in details and b"NOT_APPLIED" in details, details


if __name__ == "__main__":
    main()
