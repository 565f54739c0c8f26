"""Whether an operator is ready: `python -m latticeforge_operator.cluster.ready URL`.

What `helm test` runs, beside the operator and without any permission.
"""

from __future__ import annotations

import asyncio

import aiohttp
import click

PAUSE_SECONDS = 1.0


async def is_ready(url: str, seconds: float) -> str:
    """Ask until it is ready or the time is over; returns what is wrong, or an empty string.

    Args:
        url: Where metrics and probes are served.
        seconds: How long to ask.
    """
    problem = ""
    try:
        async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
            while problem := await _problem(session, url):  # noqa: ASYNC110  (another process)
                await asyncio.sleep(PAUSE_SECONDS)
    except TimeoutError:
        return problem or "no answer"
    return ""


async def _problem(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/readyz") as answer:
            text = (await answer.text()).strip()
            return "" if answer.status == 200 else f"{answer.status} {text}"
    except aiohttp.ClientError as error:
        return str(error)


@click.command()
@click.argument("url")
@click.option("--seconds", default=60.0, show_default=True, help="How long to ask.")
def main(url: str, seconds: float) -> None:
    """Ask the operator at URL whether it is ready."""
    if problem := asyncio.run(is_ready(url, seconds)):
        raise click.ClickException(
            f"the operator at {url} is not ready after {seconds:.0f} s: {problem}; "
            "look at its pod and its log"
        )
    click.echo(f"the operator at {url} is ready")


if __name__ == "__main__":
    main()
