"""What every part of the contract's implementation has."""

from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceServicer

from services.provisioner.service import ProvisionerService


class Part(ProvisionerServiceServicer):
    """One method a call: read the request, ask the use case, write the answer."""

    def __init__(self, service: ProvisionerService) -> None:
        self.service = service
