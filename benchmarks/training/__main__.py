"""Train a recommender with one loss after another and compare how well it ranks the test items."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import command, data, data_arguments, gpu, reporting
from benchmarks.common.arguments import add_out, non_negative_float, non_negative_int, positive_int, prior, share
from benchmarks.training.auto_files import choose_all, describe_choices
from benchmarks.training.compare import Case, check_saved, compare, describe_runs
from benchmarks.training.estimates import FAMILIES
from benchmarks.training.losses import CONFIDENCE_RATIO, LOSSES, LossOptions, build_loss
from benchmarks.training.models import MODELS
from benchmarks.training.negatives import negatives_argument
from benchmarks.training.positives import LIKELY, MOST_REGRESSED
from benchmarks.training.samplers import SRNS_TEMPERATURE
from benchmarks.training.search_spaces import Setting, all_settings, search_space
from benchmarks.training.trainer import TrainingConfig
from benchmarks.training.unused_options import OPTIONS, refuse_unused
from cw_ext.parameters import WEIGHTINGS


def _save_directories(cases: Sequence[Case], directory: Path | None) -> dict[int, Path]:
    """Where the model of each case is saved: the directory, or a folder in it for each if there are several."""
    if directory is None:
        return {}
    if len(cases) == 1:
        return {0: directory}
    if (directory / "config.json").exists():
        raise ValueError(f"{directory}: expected a directory for {len(cases)} models, got a saved model")
    names = [f"{case.loss.name}-seed{case.config.seed}" for case in cases]
    return {number: directory / name for number, name in enumerate(names)}


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults, loss_defaults = TrainingConfig(), LossOptions()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or data, or training that diverged, "
        "130 ended by Ctrl-C (what was validated by then is tested and written; --resume goes on).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="directory with train.* and test.*, kept as split; or a file, filtered and split 80/20 (or by its column "
        "split): a table, RecBole .inter, LightGCN lists, MovieLens, MIND, SNAP check-ins, JSON lines or parquet; "
        "MovieLens-100K if not given",
    )
    data_arguments.add(parser)
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=["sl", "cw"], help="losses to compare")
    parser.add_argument(
        "--auto",
        action="store_true",
        help="choose each loss's hyper-parameters by validation, with the first seed and at most twice the epochs of "
        "one training, and train with them; the learning rate is chosen for bpr only, from the given one down",
    )
    parser.add_argument("--model", choices=MODELS, default=defaults.model, help="the model to train")
    parser.add_argument("--dim", type=positive_int, default=defaults.dim, help="length of an embedding")
    parser.add_argument("--num-layers", type=positive_int, help="of a graph model; lightgcn 2, xsimgcl 3 if not given")
    parser.add_argument(
        "--contrastive-weight",
        type=non_negative_float,
        default=defaults.contrastive_weight,
        help="of the contrastive loss that xsimgcl adds",
    )
    parser.add_argument("--lr", type=non_negative_float, default=defaults.lr, help="learning rate of Adam")
    parser.add_argument(
        "--weight-decay", type=non_negative_float, default=defaults.weight_decay, help="weight decay of Adam"
    )
    parser.add_argument(
        "--tau",
        type=float,
        default=loss_defaults.temperature,
        help="temperature on the half cosine: half of a value published for the cosine (psl: as published)",
    )
    parser.add_argument(
        "--positive-tau",
        type=float,
        dest="positive_temperature",
        metavar="POSITIVE_TAU",
        help="temperature of the positive's own, on the half cosine: above tau it pulls the positive less, below more; "
        "tau if not given (softmax losses but bsl)",
    )
    parser.add_argument(
        "--falling-pull",
        type=float,
        metavar="KAPPA",
        help="multiply the pull on a row's positive by 1 - KAPPA * its loss / the batch's mean, KAPPA in (0, 1), a "
        "constant in the gradient; no such factor if not given (cw, sl, slk)",
    )
    parser.add_argument(
        "--bsl-tau",
        type=float,
        dest="bsl_positive_temperature",
        metavar="BSL_TAU",
        help="temperature of the positive, which scales the whole loss; "
        f"{loss_defaults.bsl_positive_temperature:g} if not given (bsl)",
    )
    parser.add_argument(
        "--prior",
        type=prior,
        metavar="PRIOR|auto",
        default=loss_defaults.prior,
        help="share of the sampled negatives that are positives, in [0, 1); auto: estimated at each validation, and 0 "
        "until the first (cw, dcl)",
    )
    parser.add_argument(
        "--extra-positives",
        type=non_negative_int,
        default=loss_defaults.extra_positives,
        help="extra positives per row that the correction averages over (cw, dcl)",
    )
    parser.add_argument(
        "--held-out-positives",
        action="store_true",
        help="take the extra positives from a tenth of each user's training items, which is in no row; the "
        "correction's gradient still raises their scores (cw, dcl)",
    )
    parser.add_argument(
        "--likely-positives",
        choices=(*LIKELY, "none"),
        help="take the extra positives from items that the user does not know and probably likes: by a regression "
        f"between items (EASE) or by random walks (RP3beta); auto: the first up to {MOST_REGRESSED} items; none: take "
        f"known ones; {loss_defaults.likely_positives} if not given (cw, dcl)",
    )
    parser.add_argument("--weighting", choices=WEIGHTINGS, default=loss_defaults.weighting, help="of negatives (cw)")
    parser.add_argument("--weight-tau", type=float, help="temperature of the weights; the loss's if not given (cw)")
    parser.add_argument(
        "--floor", type=float, default=loss_defaults.floor, help="share of the mass that the correction leaves (cw)"
    )
    parser.add_argument(
        "--confidence-tau",
        type=float,
        help="temperature of the confidence in the positive, on the half cosine; if not given, cw has none, and slk "
        f"{CONFIDENCE_RATIO:g} tau",
    )
    parser.add_argument(
        "--confidence-detached", action="store_true", help="the confidence is a constant in the gradient (cw)"
    )
    parser.add_argument(
        "--confidence-top-k",
        type=positive_int,
        help="measure the confidence from the score of the user's K-th item; from 0 if not given (cw; slk, talos: 20)",
    )
    parser.add_argument(
        "--refresh-epochs",
        type=positive_int,
        help="estimate these scores in a pass over the catalogue, again after so many epochs; if not given, they are "
        "learned from the counts of each step's negatives (cw, slk, talos)",
    )
    parser.add_argument(
        "--top-positives", type=float, default=loss_defaults.top_positives, help="share of positives, alpha (llpauc)"
    )
    parser.add_argument(
        "--top-negatives", type=float, default=loss_defaults.top_negatives, help="share of negatives, beta (llpauc)"
    )
    parser.add_argument(
        "--adversary-every",
        type=positive_int,
        default=loss_defaults.adversary_every,
        help="of this many epochs the adversary learns in the last, the model in the others (advinfonce)",
    )
    parser.add_argument(
        "--false-negative-prior",
        type=prior,
        metavar="PRIOR|auto",
        help="weigh negatives by 1 - p, p the probability of a false one, which is estimated for each epoch from the "
        "scores of validation items and of negatives with this share of positives, in [0, 1), or one that is estimated "
        "too; from the second epoch on (softmax losses; cw and dcl need --prior 0); no such weights if not given",
    )
    parser.add_argument(
        "--false-negative-family",
        choices=FAMILIES,
        help=f"of the densities behind p; {loss_defaults.false_negative_family} if not given",
    )
    parser.add_argument(
        "--false-negative-strength",
        type=non_negative_float,
        help=f"the exponent of 1 - p, above 0; {loss_defaults.false_negative_strength:g} if not given",
    )
    parser.add_argument(
        "--adapter-candidates",
        type=positive_int,
        metavar="K",
        help="a network tells the false negatives among the K hardest of each row, at most 64, rather than their "
        "scores do; it learns from a tenth of each user's training items, which is in no row, and ranks the test's "
        "first items again",
    )
    parser.add_argument(
        "--cross-fitted",
        action="store_true",
        help="estimate p from a tenth of each user's training items in place of the validation items: each epoch has "
        "another tenth in no row, and the next one has weights by the scores of these",
    )
    parser.add_argument(
        "--false-negatives",
        type=share,
        metavar="SHARE",
        help="hold out a tenth of the training items, and make this share of the negatives such items of their users",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "fused", "reference"),
        default=loss_defaults.backend,
        help="compiled kernels, plain PyTorch, or the kernels where they are there (not bpr, llpauc and advinfonce)",
    )
    parser.add_argument("--epochs", type=positive_int, default=defaults.epochs, help="most epochs to train")
    parser.add_argument("--batch-size", type=positive_int, default=defaults.batch_size, help="positives per step")
    parser.add_argument(
        "--negatives",
        type=negatives_argument,
        metavar="SPEC",
        default=loss_defaults.negatives,
        help="N or uniform:N, N per positive drawn inside the op; popularity:N, the same by popularity^0.75, corrected "
        "by log Q; shared:N, one set for the batch; in-batch, the batch's other positives, corrected; mixed:N, these "
        "and N uniform ones; full, all items; auto[:N], uniform, as many as each epoch's scores suggest, at most N. "
        "Chosen by score: scored:N/K, N of K uniform ones by a softmax; memory[:N], hard ones whose scores vary, as in "
        "SRNS; chain[:N], by a softmax through Markov chains, as in MCNS. Items that the user is known to like are "
        "left out (bpr: one negative, uniform, popularity or by score)",
    )
    parser.add_argument(
        "--sampler-tau",
        type=float,
        dest="sampler_temperature",
        metavar="SAMPLER_TAU",
        help="temperature of the softmax of the scores that scored negatives and chains follow, and that a memory is "
        f"drawn by; if not given, the loss's, but for bpr, which has none: {SRNS_TEMPERATURE:g} for a memory, as in "
        "SRNS, and for the others it must be given",
    )
    parser.add_argument(
        "--scored-corrected",
        action="store_true",
        help="weigh scored negatives by one over the weight that they were drawn by (softmax losses)",
    )
    parser.add_argument(
        "--memory-pool",
        type=positive_int,
        help="items in the pool that a user's memory of negatives is drawn from, 72 or more; a step's time grows with "
        f"it; {loss_defaults.memory_pool} if not given, and never more than there are items",
    )
    parser.add_argument(
        "--stage-prior",
        type=prior,
        metavar="PRIOR|auto",
        help="share of positives among the negatives, in [0, 1), from which auto:N finds the number; auto: estimated; "
        f"{loss_defaults.stage_prior:g} if not given",
    )
    parser.add_argument("--k", type=positive_int, default=defaults.k, help="length of the ranking that is judged")
    parser.add_argument(
        "--eval-every", type=positive_int, default=defaults.eval_every, help="epochs between validations"
    )
    parser.add_argument(
        "--patience",
        type=non_negative_int,
        default=0,
        help="stop after this many validations without a better NDCG; 0 trains all epochs, as the protocol does",
    )
    parser.add_argument("--device", choices=gpu.DEVICES, default=defaults.device, help="where to train")
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        nargs="+",
        default=[defaults.seed],
        help="of splits, start and sampling; with more than one, each loss is trained with each",
    )
    add_out(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="keep the model that validates best, for benchmarks.recommend; with several losses or seeds each in "
        "DIR/LOSS-seedSEED",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the comparison with this --out was interrupted: what is finished is kept",
    )
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.out is None:
        parser.error("--resume needs the --out of the comparison to go on with")
    if arguments.save is not None and arguments.out is not None and arguments.save.resolve() == arguments.out.resolve():
        parser.error("--save and --out must be different directories")
    if arguments.auto:
        _refuse_chosen(parser, argv, arguments.loss)
    return arguments


# What the fields of LossOptions are called on the command line, where that is another name.
_DESTINATIONS = {
    "temperature": "tau",
    "weight_temperature": "weight_tau",
    "confidence_temperature": "confidence_tau",
}


def _refuse_chosen(parser: argparse.ArgumentParser, argv: Sequence[str] | None, losses: Sequence[str]) -> None:
    """Refuse options that are on the command line and that --auto would choose."""
    not_given = object()
    names = {action.dest: not_given for action in parser._actions if action.default is not argparse.SUPPRESS}
    flags = {action.dest: action.option_strings[0] for action in parser._actions}
    found = vars(parser.parse_args(argv, argparse.Namespace(**names)))
    for name in losses:
        for field in sorted(search_space(name).chooses):
            destination = _DESTINATIONS.get(field, field)
            if found[destination] is not not_given:
                parser.error(f"--auto chooses {flags[destination]} of {name}: expected one of the two, got both")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return command.run(lambda: _run(_parse_arguments(argv)), "what was finished before is written")


def _run(arguments: argparse.Namespace) -> int:
    chosen = {name: getattr(arguments, name) for name in OPTIONS}
    given = {name: value for name, value in chosen.items() if value is not None and value is not False}
    if given.get("likely_positives") == "none":
        given["likely_positives"] = None
    options = LossOptions(
        temperature=arguments.tau,
        prior=arguments.prior,
        extra_positives=arguments.extra_positives,
        weighting=arguments.weighting,
        weight_temperature=arguments.weight_tau,
        floor=arguments.floor,
        confidence_temperature=arguments.confidence_tau,
        confidence_detached=arguments.confidence_detached,
        confidence_top_k=arguments.confidence_top_k,
        refresh_epochs=arguments.refresh_epochs,
        top_positives=arguments.top_positives,
        top_negatives=arguments.top_negatives,
        adversary_every=arguments.adversary_every,
        negatives=arguments.negatives,
        backend=arguments.backend,
        **given,
    )
    config = TrainingConfig(
        model=arguments.model,
        dim=arguments.dim,
        num_layers=arguments.num_layers,
        contrastive_weight=arguments.contrastive_weight,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        eval_every=arguments.eval_every,
        patience=arguments.patience or None,
        k=arguments.k,
        false_negatives=arguments.false_negatives,
        device=arguments.device,
    )
    gpu.require(arguments.device)
    names = list(dict.fromkeys(arguments.loss))
    setting = Setting(options, config)
    settings = {name: all_settings(name, setting) if arguments.auto else [setting] for name in names}
    losses = [build_loss(name, each.options) for name in names for each in settings[name]]
    refuse_unused(given, losses)
    seeds = list(dict.fromkeys(arguments.seed))
    datasets = data.load_seeds(arguments.data, seeds, **data_arguments.chosen(arguments))
    directory = arguments.out or reporting.default_directory(f"{datasets[seeds[0]].name}-{config.model}")

    def cases_of(settings: Mapping[str, Setting]) -> list[Case]:
        losses = {name: build_loss(name, settings[name].options) for name in names}
        return [
            Case(datasets[seed], losses[name], replace(settings[name].config, seed=seed))
            for name in names
            for seed in seeds
        ]

    cases = cases_of(dict.fromkeys(names, setting))
    save = _save_directories(cases, arguments.save)
    if save:
        check_saved({}, save)  # before a folder for results is made
    reporting.make_writable_directory(directory)
    choices = {}
    if arguments.auto:
        first = Setting(options, replace(config, seed=seeds[0]))
        choices = choose_all(datasets[seeds[0]], names, first, directory, arguments.resume)
        cases = cases_of({name: Setting(choice.options, choice.config) for name, choice in choices.items()})
    for note in cases[0].dataset.notes:
        print(note)
    report, interrupted = compare(cases, directory, arguments.resume, save, choices)
    if report["runs"]:
        print(describe_runs(report["runs"]))
        if choices:
            print(describe_choices(choices))
        print(f"results: {directory / 'results.json'}, {directory / 'results.png'}")
        if arguments.save is not None:
            print(f"saved: {arguments.save}")
    if interrupted:
        finished = ", ".join(f"{run['loss']} (seed {run['config']['seed']})" for run in report["runs"]) or "none"
        print(f"interrupted; runs written: {finished}", file=sys.stderr)
        return command.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
