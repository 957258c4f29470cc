"""A small vision transformer for small pictures: torchvision's, with other numbers."""

from torchvision.models import VisionTransformer


class ViT(VisionTransformer):
    """2.7 million weights with the defaults: 6 layers, 3 heads, 192 numbers a token, patches of 4 x 4 pixels.

    Source: Dosovitskiy et al., https://arxiv.org/abs/2010.11929; 192 numbers and 3 heads are DeiT-Ti's, https://arxiv.org/abs/2012.12877.
    """

    def __init__(self, classes: int, size: int, width: int = 192, layers: int = 6, patch: int = 4) -> None:
        super().__init__(size, patch, layers, width // 64, width, 4 * width, num_classes=classes)
