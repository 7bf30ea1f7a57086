"""The same job in one process, in Ray Data and in Spark: features of the Parquet files in a folder, to another folder.

python -m examples.batch.jobs ray ARTIFACT IN OUT
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from examples.batch.features import SCHEMA, sparse_features

K, ROWS, WORKERS = 256, 1024, 2
"""Features of a row at most, rows of a batch, and processes."""


def run_alone(artifact: str, source: str, target: str) -> None:
    """Run the job in this process, file by file."""
    Path(target).mkdir(parents=True)
    for path in sorted(Path(source).glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            batches = (pa.Table.from_batches([batch]) for batch in file.iter_batches(ROWS))
            found = pa.concat_tables([sparse_features(batch, artifact, K) for batch in batches])
        pq.write_table(found, Path(target) / path.name)


def run_in_ray(artifact: str, source: str, target: str) -> None:
    """Run the job in Ray Data, in a pool of actors; each opens the artifact once."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="error", _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    class Features:
        def __call__(self, table: pa.Table) -> pa.Table:
            return sparse_features(table, artifact, K)

    # Ray reads small files as one block, and one block is work for one actor.
    blocks = ray.data.read_parquet(source).repartition(target_num_rows_per_block=ROWS)
    blocks.map_batches(
        Features, batch_size=ROWS, batch_format="pyarrow", num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
    ).write_parquet(target)  # fmt: skip


def run_in_spark(artifact: str, source: str, target: str) -> None:
    """Run the job in Spark, by `mapInArrow`; each Python worker opens the artifact once."""
    from pyspark.sql import SparkSession

    # The workers need the same packages.
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    spark = (
        SparkSession.builder.master(f"local[{WORKERS}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.log.level", "ERROR")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(ROWS))
        .config("spark.sql.files.maxPartitionBytes", str(8 << 20))
        .getOrCreate()
    )

    def features(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield from sparse_features(pa.Table.from_batches([batch]), artifact, K).to_batches()

    spark.read.parquet(source).mapInArrow(features, SCHEMA).write.parquet(target)


JOBS = {"alone": run_alone, "ray": run_in_ray, "spark": run_in_spark}


def main() -> None:
    """Run one job."""
    parser = argparse.ArgumentParser(description="Write the features of activations in Parquet files.")
    parser.add_argument("engine", choices=JOBS)
    for name in ("artifact", "source", "target"):
        parser.add_argument(name, type=os.path.abspath)
    options = parser.parse_args()
    JOBS[options.engine](options.artifact, options.source, options.target)


if __name__ == "__main__":
    main()
