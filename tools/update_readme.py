"""Write the tables of configs/*/README.md from the metafile beside each.

A table stands between ``<!-- results: TASK -->`` and ``<!-- end -->``: one
line for each config with results of this task, one column for each metric.
"""

import argparse
import re
from pathlib import Path

from mmengine.fileio import load

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
TABLE = re.compile(
    '(?<=<!-- results: )(?P<task>[^>]*)( -->\n)(.*?)(?=<!-- end -->)',
    re.DOTALL,
)


def table(metafile: Path, task: str) -> str:
    """Results of a task as a Markdown table, one line a config and dataset."""
    rows = [
        (model, result)
        for model in load(metafile)['Models']
        for result in model.get('Results', [])
        if result['Task'] == task
    ]
    if not rows:
        raise ValueError(f'{metafile} has no results of task {task!r}')
    metrics = list(dict.fromkeys(m for _, r in rows for m in r['Metrics']))
    lines = [['config', 'data', *metrics]]
    lines.append(['---'] * 2 + ['---:'] * len(metrics))
    for model, result in rows:
        folder = metafile.parent.relative_to(metafile.parents[2])
        path = Path(model['Config']).relative_to(folder)
        figures = [result['Metrics'].get(name, '') for name in metrics]
        link = f'[{model["Name"]}]({path})'
        lines.append([link, result['Dataset'], *figures])
    return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in lines)


def updated(readme: Path) -> str:
    """Text of a README with its tables made anew."""
    text = readme.read_text()
    if not TABLE.search(text):
        raise ValueError(
            f'{readme} has no <!-- results: TASK --> ... <!-- end -->'
        )
    metafile = readme.with_name('metafile.yml')
    return TABLE.sub(
        lambda match: match[1] + match[2] + table(metafile, match[1]), text
    )


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    for metafile in sorted(CONFIGS.glob('*/metafile.yml')):
        readme = metafile.with_name('README.md')
        readme.write_text(updated(readme))
        print(f'{readme.relative_to(CONFIGS.parent)}: up to date')


if __name__ == '__main__':
    main()
