"""What every part of auth's face has: the use cases."""

from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceServicer

from services.auth.service import AuthService


class Part(AuthServiceServicer):
    """Some of auth's methods: read the request, ask the service, write the answer."""

    def __init__(self, service: AuthService) -> None:
        self._service = service
