# laud_mm with torch for CPUs, its compiled operations and timm. With mm* packages, which takes longer:
#   docker build --build-arg EXTRAS=openmmlab,timm -t laud_mm .
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git ninja-build libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/build.txt requirements/torch.txt /tmp/requirements/
RUN pip install --no-cache-dir -r /tmp/requirements/build.txt \
    && pip install --no-cache-dir --index-url ${TORCH_INDEX} -r /tmp/requirements/torch.txt \
    && pip install --no-cache-dir numpy

ARG EXTRAS=timm
COPY requirements/mmcv.txt /tmp/requirements/
RUN case ",${EXTRAS}," in \
        *,openmmlab,*) MMCV_WITH_OPS=1 pip install --no-cache-dir --no-build-isolation \
            -r /tmp/requirements/mmcv.txt ;; \
    esac

COPY . /opt/laud_mm
RUN pip install --no-cache-dir --no-build-isolation "/opt/laud_mm[${EXTRAS}]"

RUN useradd --create-home laud
USER laud
WORKDIR /home/laud
CMD ["python", "/opt/laud_mm/tools/latency.py", "predict", "--network", "resnet50", \
     "--paradigm", "layer", "--rate", "0.5", "--device", "TX2"]
