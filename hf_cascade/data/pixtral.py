"""Pixtral's processor without torchvision: transformers' own cannot be imported where torchvision is missing.

transformers 5.23 has a Pillow image processor for Pixtral, but its `PixtralProcessor` takes one function from the
torchvision file. What that function is for here, the number of tokens of an image, is in `data/image_text.py`.
"""

from transformers import ProcessorMixin


class PixtralProcessor(ProcessorMixin):
    """
    Stands for [`~transformers.PixtralProcessor`], with whatever image processor runs here; same files, same tokens.

    An image of rows x columns merged patches becomes `[IMG]` times columns and `[IMG_BREAK]`, row after row, with
    `[IMG_END]` for the last break.

    Args:
        image_processor (`BaseImageProcessor`): makes `pixel_values` and `image_sizes`.
        tokenizer (`PreTrainedTokenizerBase`): knows the three image tokens.
        patch_size (`int`, *optional*, defaults to 16): pixels, as in the vision tower.
        spatial_merge_size (`int`, *optional*, defaults to 1): patches merged to one token, in each direction.
        chat_template (`str`, *optional*): Jinja template.
        image_token, image_break_token, image_end_token (`str`, *optional*): Pixtral's own by default.
    """

    text_kwargs = {"return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template=None,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id, self.image_break_token_id, self.image_end_token_id = tokenizer.convert_tokens_to_ids(
            [image_token, image_break_token, image_end_token]
        )

    @property
    def image_token_ids(self) -> list[int]:
        """Ids of the three tokens images are made of."""
        return [self.image_token_id, self.image_break_token_id, self.image_end_token_id]

    @property
    def model_input_names(self) -> list[str]:
        """What the model's forward takes."""
        return self.tokenizer.model_input_names + self.image_processor.model_input_names

    def _process_images(self, images, **kwargs):
        return super()._process_images(images, **{**kwargs, "patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The tokens, as text, of image `image_idx`, whose size in pixels after resizing is in `image_sizes`."""
        height, width = (int(side) for side in image_inputs["image_sizes"][image_idx])
        rows, columns = (side // (self.patch_size * self.spatial_merge_size) for side in (height, width))
        lines = [self.image_token * columns] * rows
        return self.image_break_token.join(lines) + self.image_end_token
