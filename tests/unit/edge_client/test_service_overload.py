"""More load than the device can take, from real clients: it sheds, and then it goes on."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np

from edge_client.inference import Engine, Serving, Version
from edge_client.sample_store import SampleDatabase
from edge_client.service import NUM_HANDLERS, DeviceStatus, InferenceService, serve
from edge_client.settings import InferenceConfig, StoreConfig
from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

MAX_WAITING = 4
NUM_CLIENTS = 6 * (NUM_HANDLERS + MAX_WAITING)
NUM_REQUESTS = 10
WORK = np.ones((400, 400), np.float32)


class SlowEngine:
    """Doubles ``[1]``, after some milliseconds of real work."""

    has_taken_batches = False

    version = Version(1, "digest")
    input_shape = (1,)

    def predict(self, inputs: Any) -> Any:
        return 2 * inputs + 0 * (WORK @ WORK)[0, 0]


def test_load_beyond_the_queue_is_shed_and_every_other_call_answered(tmp_path: Path) -> None:
    socket = tmp_path / "inference.sock"
    serving = Serving(cast("Engine", SlowEngine()))
    with SampleDatabase(tmp_path / "samples.db", StoreConfig()) as samples:
        service = InferenceService(serving, samples, DeviceStatus)
        server = serve(service, socket, InferenceConfig(max_waiting=MAX_WAITING))

        def ask(client: int) -> list[grpc.StatusCode]:
            codes = []
            with client_channel(f"unix:{socket}", TlsConfig()) as channel:
                stub = inference_pb2_grpc.InferenceStub(channel)
                for turn in range(NUM_REQUESTS):
                    value = np.array([100 * client + turn], np.float32)
                    request = inference_pb2.PredictRequest(input=make_tensor(value))
                    try:
                        response = stub.Predict(request, timeout=60)
                    except grpc.RpcError as error:
                        codes.append(cast("Any", error).code())
                    else:
                        assert read_tensor(response.output, "output") == 2 * value
                        codes.append(grpc.StatusCode.OK)
            return codes

        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            codes = [code for seen in clients.map(ask, range(NUM_CLIENTS)) for code in seen]
        answered = codes.count(grpc.StatusCode.OK)
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert answered == serving.num_predictions
        assert serving.num_failures == 0
        assert ask(0) == [grpc.StatusCode.OK] * NUM_REQUESTS  # the load is gone
        server.stop(0).wait()
