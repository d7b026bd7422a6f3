"""Train a recommender with one or more losses, and compare how well it ranks the test items.

    python -m benchmarks.training --data orders.csv --loss sl cw --save models

Without --data it trains on MovieLens-100K. python -m benchmarks.recommend recommends with a saved model.
"""

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
    parser = command.make_parser(
        "python -m benchmarks.training",
        __doc__,
        "bad arguments or data, or training diverged",
        "what was validated by then is tested and written; --resume goes on from there",
    )
    files = parser.add_argument_group("data")
    files.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="a folder with train.* and test.*, used as it is; or a file, which is filtered and split 80/20, or by its "
        "column split. Formats: csv and other tables, RecBole .inter, LightGCN lists, MovieLens, MIND, SNAP check-ins, "
        "JSON lines and parquet (default: MovieLens-100K)",
    )
    data_arguments.add(files)
    model = parser.add_argument_group("model and training")
    model.add_argument("--model", choices=MODELS, default=defaults.model, help="model to train")
    model.add_argument("--dim", type=positive_int, default=defaults.dim, help="length of an embedding, D")
    model.add_argument(
        "--num-layers", type=positive_int, help="layers of a graph model (default: 2 for lightgcn, 3 for xsimgcl)"
    )
    model.add_argument(
        "--contrastive-weight",
        type=non_negative_float,
        default=defaults.contrastive_weight,
        help="weight of the contrastive loss that xsimgcl adds",
    )
    model.add_argument("--lr", type=non_negative_float, default=defaults.lr, help="learning rate of Adam")
    model.add_argument(
        "--weight-decay", type=non_negative_float, default=defaults.weight_decay, help="weight decay of Adam"
    )
    model.add_argument("--epochs", type=positive_int, default=defaults.epochs, help="epochs to train, at most")
    model.add_argument("--batch-size", type=positive_int, default=defaults.batch_size, help="positives per step, B")
    model.add_argument(
        "--eval-every", type=positive_int, default=defaults.eval_every, help="epochs between validations"
    )
    model.add_argument(
        "--patience",
        type=non_negative_int,
        default=0,
        help="stop after this many validations without a better NDCG; 0: train all epochs",
    )
    model.add_argument("--k", type=positive_int, default=defaults.k, help="length of the rankings to evaluate")
    model.add_argument("--device", choices=gpu.DEVICES, default=defaults.device, help="device to train on")
    model.add_argument(
        "--seed",
        type=non_negative_int,
        nargs="+",
        default=[defaults.seed],
        help="seeds of the splits, the initial weights and the sampling; each loss is trained with each seed",
    )
    model.add_argument(
        "--backend",
        choices=("auto", "fused", "reference"),
        default=loss_defaults.backend,
        help="fused: compiled kernels; reference: plain PyTorch; auto: the kernels if they are built "
        "(not bpr, llpauc, advinfonce)",
    )

    loss = parser.add_argument_group("loss", "Names in brackets are the losses that have the option.")
    loss.add_argument(
        "--loss",
        nargs="+",
        choices=LOSSES,
        default=["sl", "cw"],
        metavar="LOSS",
        help=f"losses to compare: {', '.join(LOSSES)}",
    )
    loss.add_argument(
        "--auto",
        action="store_true",
        help="choose each loss's hyper-parameters by validation on the first seed, then train with them. The search "
        "takes at most twice the epochs of one training. The learning rate is chosen for bpr only, from the given one "
        "downwards",
    )
    loss.add_argument(
        "--tau",
        type=float,
        default=loss_defaults.temperature,
        help="temperature on the half cosine, which is half of a value published for the cosine (psl: as published)",
    )
    loss.add_argument(
        "--positive-tau",
        type=float,
        dest="positive_temperature",
        metavar="POSITIVE_TAU",
        help="separate temperature for the positive, on the half cosine. Above --tau the pull on the positive is "
        "weaker, below it is stronger (default: --tau) (softmax losses except bsl)",
    )
    loss.add_argument(
        "--falling-pull",
        type=float,
        metavar="KAPPA",
        help="multiply the pull on a row's positive by 1 - KAPPA * its loss / the batch's mean loss, as a constant in "
        "the gradient; KAPPA in (0, 1) (default: off) (cw, sl, slk)",
    )
    loss.add_argument(
        "--bsl-tau",
        type=float,
        dest="bsl_positive_temperature",
        metavar="BSL_TAU",
        help="temperature of the positive, which scales the whole loss "
        f"(default: {loss_defaults.bsl_positive_temperature:g}) (bsl)",
    )
    loss.add_argument(
        "--weighting", choices=WEIGHTINGS, default=loss_defaults.weighting, help="weights of the negatives (cw)"
    )
    loss.add_argument("--weight-tau", type=float, help="temperature of the weights (default: --tau) (cw)")
    loss.add_argument(
        "--confidence-tau",
        type=float,
        help="temperature of the confidence in the positive, on the half cosine (default: cw has no confidence; slk "
        f"{CONFIDENCE_RATIO:g} times --tau)",
    )
    loss.add_argument(
        "--confidence-detached", action="store_true", help="treat the confidence as a constant in the gradient (cw)"
    )
    loss.add_argument(
        "--confidence-top-k",
        type=positive_int,
        help="measure the confidence from the score of the user's K-th best item (default: 20 for slk and talos; cw "
        "measures it from 0)",
    )
    loss.add_argument(
        "--refresh-epochs",
        type=positive_int,
        help="find these scores in a pass over the catalogue every so many epochs (default: learn them from the counts "
        "of each step's negatives) (cw, slk, talos)",
    )
    loss.add_argument(
        "--top-positives",
        type=float,
        default=loss_defaults.top_positives,
        help="share of positives that count, alpha (llpauc)",
    )
    loss.add_argument(
        "--top-negatives",
        type=float,
        default=loss_defaults.top_negatives,
        help="share of negatives that count, beta (llpauc)",
    )
    loss.add_argument(
        "--adversary-every",
        type=positive_int,
        default=loss_defaults.adversary_every,
        help="of every so many epochs, the last trains the adversary and the others the model (advinfonce)",
    )

    correction = parser.add_argument_group("correction of the negatives' mass (cw, dcl)")
    correction.add_argument(
        "--prior",
        type=prior,
        metavar="PRIOR|auto",
        default=loss_defaults.prior,
        help="share of the sampled negatives that are really positives, in [0, 1). auto: estimate it at each "
        "validation, and use 0 until the first",
    )
    correction.add_argument(
        "--extra-positives",
        type=non_negative_int,
        default=loss_defaults.extra_positives,
        help="extra positives per row, which the correction averages over",
    )
    correction.add_argument(
        "--likely-positives",
        choices=(*LIKELY, "none"),
        help="take the extra positives from items that the user probably likes but hasn't interacted with. They are "
        f"found by a regression between items (EASE) or by random walks (RP3beta). auto: EASE up to {MOST_REGRESSED} "
        f"items. none: take known positives (default: {loss_defaults.likely_positives})",
    )
    correction.add_argument(
        "--held-out-positives",
        action="store_true",
        help="take the extra positives from a tenth of each user's training items, which are left out of the rows. The "
        "correction's gradient still raises their scores",
    )
    correction.add_argument(
        "--floor", type=float, default=loss_defaults.floor, help="share of the mass that the correction leaves (cw)"
    )

    false = parser.add_argument_group("weights against false negatives (softmax losses; cw and dcl need --prior 0)")
    false.add_argument(
        "--false-negative-prior",
        type=prior,
        metavar="PRIOR|auto",
        help="weight negatives by 1 - p, where p is the probability of a false negative. From the second epoch on, p "
        "is estimated in each epoch from the scores of validation items and of negatives, given this share of "
        "positives among the negatives, in [0, 1). auto: estimate the share too (default: no weights)",
    )
    false.add_argument(
        "--false-negative-family",
        choices=FAMILIES,
        help=f"family of densities used to estimate p (default: {loss_defaults.false_negative_family})",
    )
    false.add_argument(
        "--false-negative-strength",
        type=non_negative_float,
        help=f"exponent of 1 - p, above 0 (default: {loss_defaults.false_negative_strength:g})",
    )
    false.add_argument(
        "--cross-fitted",
        action="store_true",
        help="estimate p from a tenth of each user's training items instead of the validation items. Each epoch leaves "
        "another tenth out of the rows, and the next epoch's weights come from the scores of that tenth",
    )
    false.add_argument(
        "--adapter-candidates",
        type=positive_int,
        metavar="K",
        help="let a network find the false negatives among the K hardest of each row, at most 64, instead of using "
        "their scores. It learns from a tenth of each user's training items, which are left out of the rows, and also "
        "reranks the first items of the test rankings",
    )

    sampling = parser.add_argument_group("negatives")
    sampling.add_argument(
        "--negatives",
        type=negatives_argument,
        metavar="SPEC",
        default=loss_defaults.negatives,
        help="kind and number of negatives. N or uniform:N: N per positive, drawn inside the op. popularity:N: the "
        "same, drawn by popularity^0.75 and corrected by log Q. shared:N: one set for the batch. in-batch: the batch's "
        "other positives, corrected. mixed:N: these and N uniform ones. full: all items. auto[:N]: uniform, as many as "
        "each epoch's scores suggest, at most N. Chosen by score: scored:N/K: N of K uniform ones, by a softmax. "
        "memory[:N]: hard ones whose scores vary, as in SRNS. chain[:N]: by a softmax, through Markov chains, as in "
        "MCNS. The user's known positives are always left out. bpr takes one negative: uniform, by popularity or by "
        "score",
    )
    sampling.add_argument(
        "--sampler-tau",
        type=float,
        dest="sampler_temperature",
        metavar="SAMPLER_TAU",
        help="temperature of the softmax of scores for scored:, chain: and memory: (default: --tau. bpr has none: "
        f"{SRNS_TEMPERATURE:g} for memory:, as in SRNS, and required for the others)",
    )
    sampling.add_argument(
        "--scored-corrected",
        action="store_true",
        help="weight scored: negatives by one over the weight that they were drawn with (softmax losses)",
    )
    sampling.add_argument(
        "--memory-pool",
        type=positive_int,
        help="items in the pool that a user's memory: negatives are drawn from, 72 or more, and never more than there "
        f"are items. A step's time grows with it (default: {loss_defaults.memory_pool})",
    )
    sampling.add_argument(
        "--stage-prior",
        type=prior,
        metavar="PRIOR|auto",
        help="share of positives among the negatives, in [0, 1), from which auto: finds the number. auto: estimate it "
        f"(default: {loss_defaults.stage_prior:g})",
    )
    sampling.add_argument(
        "--false-negatives",
        type=share,
        metavar="SHARE",
        help="plant false negatives: hold out a tenth of the training items, and make this share of the negatives such "
        "items of their users",
    )

    results = parser.add_argument_group("results")
    add_out(results)
    results.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="save the model that validates best, for benchmarks.recommend. With several losses or seeds, each is "
        "saved in DIR/LOSS-seedSEED",
    )
    results.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted comparison in --out. Finished runs are kept",
    )
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.out is None:
        parser.error("--resume needs --out, the folder of the comparison to go on with")
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
                parser.error(f"--auto chooses {flags[destination]} for {name}: expected one of the two, got both")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return command.run(lambda: _run(_parse_arguments(argv)), "the runs that finished are written")


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
        reporting.print_results(directory / "results.json", directory / "results.png")
        if arguments.save is not None:
            print(f"saved: {arguments.save}")
    if interrupted:
        finished = ", ".join(f"{run['loss']} (seed {run['config']['seed']})" for run in report["runs"]) or "none"
        print(f"interrupted; finished runs: {finished}", file=sys.stderr)
        return command.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
