"""An agent that speaks HTTP with requests: python guest_requests.py NAME [URL]"""

import sys

import requests

name, node = [*sys.argv[1:], "http://127.0.0.1:8077"][:2]
http = requests.Session()


def post(path, **body):
    http.post(f"{node}{path}", json=body, timeout=10).raise_for_status()


post(
    "/registry/register",
    instance_id=name,
    hostname="",
    port=0,
    capabilities=["shout"],
    agent_profiles=[],
)
while True:
    post(f"/registry/heartbeat/{name}", status="healthy")
    answer = http.get(f"{node}/messages/{name}", params={"wait": 5}, timeout=15)
    for message in answer.json()["messages"]:
        post(
            f"/messages/send/{name}",
            target_instance=message["source_instance"],
            message_type="Response",
            payload=message["payload"].upper(),
            correlation_id=message["message_id"],
        )
        post(f"/messages/ack/{name}", message_ids=[message["message_id"]])
