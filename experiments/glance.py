"""The first table of the top README: what E + S keep of T's accuracy at a lower cost; experiments.tables writes it."""

from experiments.row_tables import means, rows_of
from experiments.run import config_of, teacher_row
from thumbnet_tf.stages import ORIGINAL

# what a line shows, its set, and there bicubic thumbnails, the same with KD, E + S, and the slimmer network
LINES = (
    ("textures that downscaling removes (`fine_detail/hard`)", "hard_24", "bicubic", "bicubic_kd", "thumbnet", ""),
    ("flowers (`tf_flowers`), T's own network as S", "flowers_64", "bicubic", "bicubic_kd", "thumbnet", ""),
    ("flowers, T's own network as S", "flowers_32", "bicubic", "bicubic_kd", "thumbnet", ""),
    (
        "flowers, S on larger maps, longer training",
        "flowers_32",
        "narrow_bicubic_160",
        "narrow_bicubic_kd_160",
        "narrow_thumbnet_160",
        "slim",
    ),
    (
        "leaves (`plant_village_14`), T's own network as S, longer training",
        "plant_64",
        "bicubic_72",
        "bicubic_kd_72_cl",
        "thumbnet_72_cl",
        "",
    ),
    (
        "leaves, S on larger maps, longer training",
        "plant_32",
        "",
        "narrow_bicubic_kd_200_cl",
        "narrow_thumbnet_200_cl",
        "",
    ),
)


def markdown() -> str:
    """Returns the table: mean accuracies over the seeds of E + S; of others where they are measured for all of them."""
    lines = [
        "| images | px | T | bicubic thumbnails | the same, taught by T | E + S | slimmer network on full images "
        "| M multiply-adds: T, E + S | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for about, of_set, *others in LINES:
        rows, cfg = rows_of(of_set), config_of(f"{of_set}_thumbnet")
        teacher = teacher_row(f"{of_set}_{ORIGINAL}")
        ours = f"{of_set}_{others[2]}"
        _, seeds = means(rows, [teacher, ours])
        cells = [about, f"{cfg.image_size} to {cfg.thumbnail_size}"]
        for name in (teacher, *(f"{of_set}_{other}" for other in others)):
            found, shared = means(rows, [name, teacher, ours])
            cells.append(f"{100 * found[0]:.1f}" if shared == seeds else "-")
        counts = {row["row"]: (int(row["macs"]) + int(row["macs_downscaler"])) / 1e6 for row in rows}
        lines.append(f"| {' | '.join(cells)} | {counts[teacher]:.0f}, {counts[ours]:.0f} | {seeds} |")
    return "\n".join(lines)
