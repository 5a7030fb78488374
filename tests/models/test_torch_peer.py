"""The same weights in PyTorch diffusers; runs where torch and diffusers are installed beside Paddle."""

import numpy as np
import paddle

from ppvilg.models import MoDEUNet2DConditionModel


def test_a_unet_saved_by_pytorch_diffusers_agrees(tiny_config, tmp_path, import_peer):
    torch, diffusers = import_peer("torch"), import_peer("diffusers")
    torch.manual_seed(0)
    peer = diffusers.UNet2DConditionModel(**tiny_config).eval()
    peer.save_pretrained(tmp_path / "peer")
    model = MoDEUNet2DConditionModel.from_stock(tmp_path / "peer", from_diffusers=True, num_experts=2)
    rng = np.random.default_rng(0)
    x, text = rng.standard_normal((2, 4, 12, 8), np.float32), rng.standard_normal((2, 5, 16), np.float32)
    for timestep in (3, 720):
        with torch.no_grad():
            expected = peer(torch.from_numpy(x), timestep, torch.from_numpy(text)).sample.numpy()
        with paddle.no_grad():
            ours = model(paddle.to_tensor(x), timestep, paddle.to_tensor(text)).sample.numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
