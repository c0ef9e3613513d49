"""The entry point: registers the commands and imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from implicitcore import hookimpl

if TYPE_CHECKING:
    from implicitcore.extend import Registrar

IMPLICITCORE_API = 1


@hookimpl
def implicitcore_register(registry: Registrar) -> None:
    """Register the commands, the data sets, the models and the tables."""
    registry.register(
        "command",
        "train",
        "implicitcore_lab.cli:train",
        summary="Train one layer on images and save the run.",
    )
    registry.register(
        "command",
        "compare",
        "implicitcore_lab.cli:compare",
        summary="Train several layers alike and print one table.",
    )
    registry.register(
        "command",
        "evaluate",
        "implicitcore_lab.cli:evaluate",
        summary="Reload a run and reproduce its test accuracy.",
    )
    registry.register(
        "command",
        "report",
        "implicitcore_lab.cli:report",
        summary="Write runs as one HTML page, with tables as CSV and LaTeX.",
    )
    registry.register(
        "command",
        "reproduce",
        "implicitcore_lab.cli:reproduce",
        summary="Measure a table of a paper again and write a page about it.",
    )
    registry.register(
        "command",
        "diagnose",
        "implicitcore_lab.cli:diagnose",
        summary="Measure a layer on a batch and name what is wrong with it.",
    )
    registry.register(
        "command",
        "tune",
        "implicitcore_lab.tuning.command:tune",
        summary="Find the fastest solver and gradient for a layer on its data.",
    )
    for name, target, summary in (
        ("mnist-mlp", "mnist_mlp:MnistMLP", "Skip DEQs on MNIST, fully connected."),
        ("cifar10-tiny", "cifar10_tiny:Cifar10Tiny", "Multiscale DEQs on CIFAR-10."),
        ("homoode-mnist", "homoode_mnist:HomoODEMnist", "HomoODE, DEQ and Neural ODEs on MNIST."),
        ("bridge", "bridge:Bridge", "One equilibrium by five ways."),
        ("augmented", "augmented:Augmented", "Why augmented Neural ODEs work."),
        ("language", "language:Language", "An equilibrium language model and its explicit twin."),
    ):
        registry.register("table", name, f"implicitcore_lab.papers.{target}", summary=summary)
    for name, target, summary in (
        ("digits", "images:Digits", "Handwritten digits of scikit-learn, 8 x 8."),
        ("mnist", "images:MNIST", "Handwritten digits, 28 x 28."),
        ("fashion-mnist", "images:FashionMNIST", "Pictures of clothes, 28 x 28."),
        ("cifar10", "images:CIFAR10", "Photographs of ten kinds, 32 x 32."),
        ("npz", "sources:Npz", "Arrays of your own in an .npz file."),
        ("image-folder", "sources:ImageFolder", "PNG and JPEG files, a folder for each class."),
        ("text", "sequences:Text", "The next byte of a text."),
        ("time-series", "sequences:TimeSeries", "The next value of a series in a CSV file."),
    ):
        registry.register("dataset", name, f"implicitcore_lab.{target}", summary=summary)
    for name, target, summary in (
        ("dense", "models:Dense", "Linear encoder, cell and head."),
        ("convolutional", "models:Convolutional", "Convolutional encoder and cell."),
        ("preset", "papers.models:PresetModel", "A cell of a paper with its own stem and head."),
        ("homoode", "papers.models:HomoODEModel", "HomoODE's stem, field and head."),
    ):
        registry.register("model", name, f"implicitcore_lab.{target}", summary=summary)
