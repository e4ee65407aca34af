"""The training loss of IFRNet: what the network predicts goes in, three named terms come out."""

from torch import Tensor

from .terms import census, charbonnier, flow_distillation, geometry

__all__ = ["ifrnet_loss"]

GEOMETRY, DISTILLATION = 0.01, 0.01  # the paper's weights


def ifrnet_loss(out, imgt: Tensor, flow: Tensor | None = None) -> dict[str, Tensor]:
    """The terms whose sum training minimises (IFRNet, section 3.3): {"rec", "geo", "dis"}, scalars, already weighted.

    out: models.Interpolation with `targets`. imgt: the true frames (B, 3, H, W) in [0, 1]. flow: teacher flow
    (B, 4, H, W), t->0 and t->1 in pixels, NaN where there is none; None: "dis" is 0. ValueError without targets, and
    for true frames or flow of another shape than the predicted ones, which would be broadcast.
    """
    if out.targets is None:
        raise ValueError("the loss needs the true frame's features: call the model with imgt")
    for what, given, predicted in (("true frames", imgt, out.imgt), ("teacher flow", flow, out.flows[0])):
        if given is not None and given.shape != predicted.shape:
            raise ValueError(f"{what} of shape {tuple(given.shape)}; {tuple(predicted.shape)} is needed")
    zero = imgt.new_zeros(())
    return {
        "rec": charbonnier(out.imgt - imgt) + census(out.imgt, imgt),
        "geo": GEOMETRY * sum(geometry(f, target) for f, target in zip(out.features, out.targets)),
        "dis": zero if flow is None else DISTILLATION * flow_distillation(out.flows, flow),
    }
