import json


class Request:
    remote: str | None
    content_length: int | None

    async def json(self):
        raise NotImplementedError


class Response:
    def __init__(self, text, status):
        self.text, self.status = text, status


def json_response(data, status=200):
    return Response(json.dumps(data), status)
