"""An agent that speaks HTTP with requests: python guest_requests.py NAME [URL]"""

import os
import sys

import requests

name, node = [*sys.argv[1:], "http://127.0.0.1:8077"][:2]
http = requests.Session()
if token := os.environ.get("P2PMESH_HTTP_TOKEN"):
    http.headers["Authorization"] = f"Bearer {token}"


def ask(method, path, **more):
    answer = http.request(method, f"{node}{path}", timeout=15, **more)
    if not answer.ok:
        print(answer.status_code, answer.text)
    return answer


register = {"instance_id": name, "hostname": "", "port": 0}
register |= {"capabilities": ["shout"], "agent_profiles": []}
ask("POST", "/registry/register", json=register).raise_for_status()
while True:
    ask("POST", f"/registry/heartbeat/{name}", json={"status": "healthy"}).raise_for_status()
    answer = ask("GET", f"/messages/{name}", params={"wait": 5})
    answer.raise_for_status()
    for message in answer.json()["messages"]:
        if message["message_type"] == "Query":
            response = {
                "target_instance": message["source_instance"],
                "message_type": "Response",
                "payload": str(message["payload"]).upper(),
                "correlation_id": message["message_id"],
            }
            ask("POST", f"/messages/send/{name}", json=response)  # whoever asked may be gone
        read = {"message_ids": [message["message_id"]]}
        ask("POST", f"/messages/ack/{name}", json=read).raise_for_status()
