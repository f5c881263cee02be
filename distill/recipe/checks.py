"""What a recipe's fields ask of each other.

The schema judges each field alone; these are the rules between fields. All are checked, none stops the others, and
nothing here looks at a file or imports torch. A setting that would do nothing is a problem too: it says that the
recipe means something else than it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from distill.errors import RecipeError
from distill.recipe.compare_checks import compare_problems, make_arms
from distill.recipe.fields import key
from distill.recipe.grid import UNTRAINED, Cell, with_loss
from distill.recipe.label_checks import label_problems
from distill.recipe.labels import LEARNED_RULES, LabelRule
from distill.recipe.schema import OptimizerRecipe, Recipe, StageRecipe, ViewsRecipe
from distill.recipe.student_checks import student_problems

# Sources that torchvision can download, and those without a test part of their own.
_DOWNLOADABLE = frozenset({"fashion-mnist", "cifar10", "cifar100"})
_UNDIVIDED = frozenset({"digits"})
# Fields of [views] that say nothing unless one of others is in use.
_VIEWS_NEED = {
    "resized_crop_ratio": ("resized_crop",),
    "randaugment_magnitude": ("randaugment",),
    "erasing_area": ("erasing",),
    "erasing_ratio": ("erasing",),
    "mix_probability": ("mixup", "cutmix"),
}


def problems(recipe: Recipe, *, comparing: bool = False) -> list[str]:
    """Every rule that the recipe breaks, one line each: `[table] field: found ..., expected ...`.

    Args:
        recipe: one that fits the schema.
        comparing: whether the teachers of [compare] are to be trained, so that the learned ones among them count too.
    """
    compare, arms = recipe.compare, make_arms(recipe)
    own = [*compare_problems(recipe, arms, comparing)]
    if not comparing:
        found = _fields(recipe)
    elif compare.arms:
        found = _arms(arms.made)
    else:
        found = _with_each_loss(recipe, compare.teachers)
    return [*found, *own]


def _fields(recipe: Recipe, compared: Sequence[LabelRule] = ()) -> list[str]:
    """Of all tables but [compare]; `compared` are the label rules of the teachers that this recipe is to train."""
    learned = {recipe.teacher.labels.rule, *compared} & LEARNED_RULES
    return [
        *_data(recipe),
        *_noise(recipe),
        *_views(recipe),
        *_stage(recipe, "teacher", recipe.teacher, recipe.teacher.optimizer),
        *label_problems(recipe, sorted(learned)),
        *_imported(recipe),
        *_stage(recipe, "student", recipe.student, recipe.student.optimizer),
        *_export(recipe),
        *student_problems(recipe, compared),
    ]


def _with_each_loss(recipe: Recipe, compared: Sequence[LabelRule]) -> list[str]:
    """With every loss that [compare] names, each problem once."""
    losses = recipe.compare.losses or (recipe.student.loss.name,)
    return list(dict.fromkeys(line for loss in losses for line in _fields(with_loss(recipe, loss, None), compared)))


def _arms(made: Mapping[str, Recipe]) -> list[str]:
    """Of every arm that can be made; what all of them have in common is said once, without their names."""
    found = {name: _with_each_loss(arm, (arm.teacher.labels.rule,)) for name, arm in made.items()}
    lines = dict.fromkeys(line for each in found.values() for line in each)
    common = [line for line in lines if all(line in each for each in found.values())]
    own = [f"[compare.arms] {key(name)}: {line}" for name, each in found.items() for line in each if line not in common]
    return [*common, *own]


def check_recipe(recipe: Recipe, where: str, *, comparing: bool = False) -> None:
    """Raises a `RecipeError` that names every problem, each line opened by `where`."""
    found = problems(recipe, comparing=comparing)
    if found:
        lines = "\n".join(f"{where}: {problem}" for problem in found)
        raise RecipeError(lines, cure="`distill list fields` says what each field is for.")


def cell_problems(cells: Sequence[Cell]) -> Iterator[str]:
    """Rules that single cells of a comparison break, each told once, of the first that does.

    Cells of the first seed are looked at: other seeds break no other rule. `[compare]` is that of the comparison in
    each, so nothing is left to say of it: to make all arms again for every cell would take the square of their number.

    Args:
        cells: of a comparison whose recipe breaks no rule by itself.
    """
    told: set[str] = set()
    for cell in cells:
        if cell.seed != cells[0].seed:
            continue
        for line in _fields(cell.recipe):
            if line not in told:
                told.add(line)
                out = "; or leave out this control: [compare] controls = false" if cell.control == UNTRAINED else ""
                yield f"{cell}: {line}{out}"


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    for name, size in (("validation", data.validation), ("meta", data.meta), ("test", data.test)):
        if isinstance(size, float) and size >= 1:
            yield f"[data] {name}: found {size!r}, expected a number of images, or a share below 1"
    if data.source in _UNDIVIDED and data.test == 0:
        yield f'[data] test: found 0, expected some images: the source "{data.source}" has no test part of its own'
    if data.source == "folder" and not data.root:
        yield '[data] root: found none, expected the folder of images that source = "folder" reads'
    if data.source != "folder" and data.image_size:
        yield f'[data] image_size: found {data.image_size}, but "{data.source}" has images of one size; leave it out'
    if data.source != "folder" and data.unreadable != "error":
        yield f'[data] unreadable: found "leave-out", but "{data.source}" has no unreadable images; leave it out'
    if data.download and data.source not in _DOWNLOADABLE:
        yield f'[data] download: found true, but the source "{data.source}" is never downloaded; leave it out'


def _noise(recipe: Recipe) -> Iterator[str]:
    noise = recipe.data.noise
    drawn = noise.kind in ("symmetric", "asymmetric")
    if noise.kind == "file" and not noise.file:
        yield '[data.noise] file: found none, expected the noise file that kind = "file" reads'
    if noise.kind != "file" and noise.file:
        yield f'[data.noise] file: given, but kind is "{noise.kind}"; expected kind = "file"'
    if drawn and noise.rate == 0:
        yield f'[data.noise] rate: found 0, expected more than 0 with kind = "{noise.kind}"'
    if not drawn and noise.rate > 0:
        yield (
            f'[data.noise] rate: found {noise.rate:g}, but kind is "{noise.kind}"; '
            'expected kind = "symmetric" or "asymmetric"'
        )
    if noise.pairs and noise.kind != "asymmetric":
        yield f'[data.noise] pairs: given, but kind is "{noise.kind}"; expected kind = "asymmetric"'
    for given, wrong in noise.pairs.items():
        if given == wrong:
            yield f'[data.noise] pairs: found "{given}" turned into itself, expected another class'
    if noise.redraw == "others" and noise.kind != "symmetric":
        yield f'[data.noise] redraw: found "others", but kind is "{noise.kind}"; expected kind = "symmetric"'


def _views(recipe: Recipe) -> Iterator[str]:
    views = recipe.views
    drawn = ", ".join(views.drawn)
    orbit = (2 * views.crop_padding + 1) ** 2 * (2 if views.flip else 1)
    if views.count == "orbit" and drawn:
        yield (
            f'[views] count: found "orbit", but {drawn} cannot be enumerated; '
            "expected a number of views, or crop_padding and flip alone"
        )
    if views.count != "orbit" and not drawn and views.count > orbit:
        yield (
            f"[views] count: found {views.count}, but crop_padding {views.crop_padding} and flip "
            f'{str(views.flip).lower()} have {orbit} different views; expected at most {orbit}, or "orbit"'
        )
    if views.crop_padding and views.resized_crop:
        yield (
            f"[views] crop_padding: found {views.crop_padding} with resized_crop, which crops in its own way; "
            "leave one of them out"
        )
    for name in ("resized_crop", "resized_crop_ratio", "erasing_area", "erasing_ratio"):
        bounds = getattr(views, name)
        if bounds and bounds[0] > bounds[1]:
            found = f"[{bounds[0]:g}, {bounds[1]:g}]"
            yield f"[views] {name}: found {found}, expected the least first: [{bounds[1]:g}, {bounds[0]:g}]"
    for name, needed in _VIEWS_NEED.items():
        given = getattr(views, name) != ViewsRecipe.model_fields[name].default
        if given and not any(getattr(views, field) for field in needed):
            verb = "is" if len(needed) == 1 else "are"
            yield (
                f"[views] {name}: given, but {' and '.join(needed)} {verb} not in use; "
                f"set {' or '.join(needed)}, or leave it out"
            )
    if (views.mixup or views.cutmix) and not views.mix_probability:
        yield "[views] mix_probability: found 0 with mixup or cutmix, expected more than 0"


def _stage(recipe: Recipe, table: str, stage: StageRecipe, optimizer: OptimizerRecipe) -> Iterator[str]:
    if stage.select == "best" and recipe.data.validation == 0:
        yield f'[{table}] select: found "best" with no validation images, expected [data] validation above 0, or "last"'
    if optimizer.warmup_epochs and optimizer.warmup_epochs >= stage.epochs:
        yield (
            f"[{table}.optimizer] warmup_epochs: found {optimizer.warmup_epochs}, "
            f"expected fewer than the {stage.epochs} epochs of [{table}]"
        )
    if optimizer.min_lr > 0 and optimizer.schedule != "cosine":
        yield f'[{table}.optimizer] min_lr: given, but schedule is "{optimizer.schedule}"; expected schedule = "cosine"'
    if optimizer.min_lr > optimizer.lr:
        yield f"[{table}.optimizer] min_lr: found {optimizer.min_lr:g}, expected at most lr = {optimizer.lr:g}"
    yield from _milestones(table, stage.epochs, optimizer)


def _milestones(table: str, epochs: int, optimizer: OptimizerRecipe) -> Iterator[str]:
    milestones = optimizer.milestones
    place = f"[{table}.optimizer] milestones"
    if optimizer.schedule != "multistep":
        if milestones:
            yield f'{place}: given, but schedule is "{optimizer.schedule}"; expected schedule = "multistep"'
        return
    if not milestones:
        yield f'{place}: found none, expected at least one epoch with schedule = "multistep"'
    if list(milestones) != sorted(set(milestones)):
        yield f"{place}: found {list(milestones)}, expected an increasing list"
    if any(milestone >= epochs for milestone in milestones):
        yield f"{place}: found {max(milestones)}, expected fewer than the {epochs} epochs of [{table}]"


def _imported(recipe: Recipe) -> Iterator[str]:
    imported = recipe.teacher.imported
    if not imported.source:
        for name in ("weights_sha256", "channels", "image_size", "mean", "std"):
            if getattr(imported, name):
                yield (
                    f"[teacher.imported] {name}: given, but the teacher is trained here; leave it out, or import one: "
                    "distill export --teacher timm:NAME"
                )
    elif len(imported.mean) != imported.channels or len(imported.std) != imported.channels or not imported.channels:
        yield (
            f"[teacher.imported] mean: found {len(imported.mean)} numbers, and {len(imported.std)} in std, "
            f"expected one for each of the {imported.channels} channels"
        )


def _export(recipe: Recipe) -> Iterator[str]:
    export = recipe.export
    if export.format == "topk" and export.k is None:
        yield '[export] k: found none, expected how many logits of each row format = "topk" keeps'
    if export.format != "topk" and export.k is not None:
        yield (
            f'[export] k: found {export.k}, but format is "{export.format}"; '
            'expected format = "topk", or leave k out (--set export.k=none)'
        )
