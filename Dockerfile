# docker build -t challenge . ; how to run it: challenge/compose.yaml
FROM python:3.13-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 challenge \
    && install --directory --owner challenge /data

WORKDIR /app
COPY environment.yml .
# What the service needs, without the checks and without CUDA.
RUN sed -n '/# The service/,/# Development/s/^ *- //p' environment.yml > requirements.txt \
    && pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu --requirement requirements.txt
COPY challenge challenge

# The catalogue, the models and the caches are in the working directory. Fewer heaps: less memory with many threads.
ENV PYTHONPATH=/app HF_HOME=/data/huggingface MALLOC_ARENA_MAX=2
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 9876
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:9876/health/live')"]
CMD ["uvicorn", "challenge:app", "--host", "0.0.0.0", "--port", "9876", "--timeout-graceful-shutdown", "60"]
