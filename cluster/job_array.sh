#!/bin/bash
# A run as a plain job array, for clusters whose nodes may not open ports. No scheduler of Dask's is needed.
#
#   parts=$(sbatch --parsable --array=1-8 job_array.sh CONFIG RUN 8)
#   sbatch --dependency=afterok:$parts --cpus-per-task=4 --mem=16G --wrap "headroom run CONFIG --out RUN --no-dask"
#
# To repeat part 3 alone: sbatch --array=3 job_array.sh CONFIG RUN 8. The last number stays the number of all parts.
#SBATCH --job-name=headroom-part
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu
export HEADROOM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec headroom accumulate "$1" --out "$2" --part "$SLURM_ARRAY_TASK_ID" --of "$3"
