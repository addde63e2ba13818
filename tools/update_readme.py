"""Write the tables of configs/*/README.md from the metafile beside each."""

import argparse
import re
from pathlib import Path

from mmengine.fileio import load

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
TABLE = re.compile('(?<=<!-- results -->\n).*?(?=<!-- end -->)', re.DOTALL)


def table(metafile: Path) -> str:
    """Results of a metafile as a Markdown table, one line a model."""
    models = [m for m in load(metafile)['Models'] if m.get('Results')]
    metrics = list(
        dict.fromkeys(
            name
            for model in models
            for result in model['Results']
            for name in result['Metrics']
        )
    )
    rows = [['config', 'data', 'iterations', *metrics]]
    rows.append(['---'] * 3 + ['---:'] * len(metrics))
    for model in models:
        link = f'[{model["Name"]}]({Path(model["Config"]).name})'
        for result in model['Results']:
            figures = [result['Metrics'].get(name, '') for name in metrics]
            steps = model['Metadata']['Iterations']
            rows.append([link, result['Dataset'], steps, *figures])
    return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in rows)


def updated(readme: Path) -> str:
    """Text of a README with its table made anew."""
    text = readme.read_text()
    if not TABLE.search(text):
        raise ValueError(f'{readme} has no <!-- results --> ... <!-- end -->')
    made = table(readme.with_name('metafile.yml'))
    return TABLE.sub(lambda _: made, text)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for metafile in sorted(CONFIGS.glob('*/metafile.yml')):
        readme = metafile.with_name('README.md')
        readme.write_text(updated(readme))
        print(f'{readme.relative_to(CONFIGS.parent)}: up to date')


if __name__ == '__main__':
    main()
