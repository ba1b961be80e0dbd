# vlm-guard with the CPU build of torch:
#   docker build -t vlm-guard . && docker run --rm -v "$PWD":/data vlm-guard generate /data/photo.jpg
# For a GPU leave out the line that installs torch from the CPU index, and run with `--gpus all`.
FROM python:3.11-slim

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY vlm_guard vlm_guard
COPY methods methods
COPY kernels kernels
COPY eval eval
COPY demo demo
RUN pip install --no-cache-dir torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -c constraints.txt '.[models]' \
    && rm -rf /source

WORKDIR /data
ENTRYPOINT ["vlm-guard"]
CMD ["--help"]
