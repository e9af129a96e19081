#!/usr/bin/env bash
# Installs trainyard into a Debian or Ubuntu image: what launch.environment installs, from the same
# lists, without the tools of the tests. Dockerfile and trainyard.def run it from the top of the
# sources, one step after the other:
#
#   containers/install.sh system     programs of the system
#   containers/install.sh torch      the environment, with PyTorch (TORCH=torch==2.11.0: another one)
#   containers/install.sh project    DALI, this project and Horovod (ENGINE=torch: without Horovod)
#   containers/install.sh ssh        for ranks that horovodrun starts over ssh, as in an MPIJob
set -euo pipefail
venv=${VENV:-/opt/trainyard}
python=$venv/bin/python
step=${1:-nothing}

# Of the image's Python, before there is an environment.
from_environment() {
    python3 -c "from launch import environment as e; print($1)"
}

case $step in
system)
    # g++ and Python.h at run time too: Triton compiles the launchers of its kernels.
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        python3 python3-venv python3-dev g++ make ca-certificates
    rm -rf /var/lib/apt/lists/*
    ;;
torch)
    python3 -m venv "$venv"
    "$python" -m pip install --no-cache-dir --quiet "${TORCH:-$(from_environment e.TORCH)}"
    ;;
project)
    cuda=$("$python" -c "import torch; print(torch.version.cuda or '')")
    extras=$(from_environment "e.dali_extra('$cuda' or None)"),export
    if [ "${ENGINE:-horovod}" = torch ]; then
        "$python" -m pip install --no-cache-dir --quiet ".[$extras]"
    else
        "$python" -m pip install --no-cache-dir --quiet ".[$extras,horovod]"
        cache=$(mktemp -d)
        XDG_CACHE_HOME=$cache "$python" -m launch.horovod_build --install
        rm -rf "$cache"
    fi
    ;;
ssh)
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        openssh-client openssh-server
    rm -rf /var/lib/apt/lists/*
    # The daemon runs as the image's user, on a port that it may open, with the keys that the operator
    # mounts for one job.
    keys=/home/trainyard/.ssh
    printf '%s\n' 'Host *' 'Port 2222' 'StrictHostKeyChecking no' 'UserKnownHostsFile /dev/null' \
        'LogLevel ERROR' > /etc/ssh/ssh_config.d/trainyard.conf
    printf '%s\n' 'Port 2222' 'PidFile none' 'StrictModes no' 'PasswordAuthentication no' \
        "HostKey $keys/id_rsa" "AuthorizedKeysFile $keys/authorized_keys" \
        "SetEnv PATH=$venv/bin:/usr/local/bin:/usr/bin:/bin" > /etc/ssh/trainyard_sshd
    ;;
*)
    echo "error: $step is no step of $0; give system, torch, project or ssh" >&2
    exit 2
    ;;
esac
