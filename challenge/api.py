"""The HTTP side: routes, status codes and problem details (RFC 9457)."""

import logging
from http import HTTPStatus
from typing import Annotated, Any

import pandas as pd
from fastapi import FastAPI, File, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from challenge.encoder import EncoderUnavailableError
from challenge.model import LEVEL
from challenge.settings import Settings
from challenge.tables import CatalogueMissingError, TableError, read_pairs
from challenge.training import NotTrainedError, Service, TrainingBusyError

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
STATUS: dict[type[Exception], int] = {TableError: 422, RequestValidationError: 422, EncoderUnavailableError: 503}
STATUS |= dict.fromkeys((CatalogueMissingError, NotTrainedError, TrainingBusyError), 409)
Level = Annotated[float, Query(gt=0, lt=1, description="share of the true ratings that shall lie in the intervals")]
Upload = Annotated[UploadFile, File(description="a CSV file")]

app = FastAPI(title="challenge", description="Predicts what a user will rate a movie that nobody has rated yet.")
service = Service(Settings())


def on_error(_: Request, error: Exception) -> JSONResponse:
    """Answer what was refused or went wrong by a problem document."""
    status = STATUS.get(type(error), getattr(error, "status_code", 500))
    detail = getattr(error, "detail", str(error))
    if isinstance(error, RequestValidationError):
        detail = "; ".join(f"{' '.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, media_type="application/problem+json")


for kind in (*STATUS, HTTPException, Exception):
    app.add_exception_handler(kind, on_error)


@app.post("/ratings/train")
def train(file: Upload) -> dict[str, Any]:
    """Train on a CSV of `userId`, `rating` and `movieId`; answer with a report."""
    return service.train(read_pairs(file.file, rated=True))


@app.post("/ratings")
def rate(file: Upload) -> dict[str, int]:
    """Add the ratings of a CSV like that of a training; the next prediction knows them."""
    ratings = read_pairs(file.file, rated=True)
    service.rate(ratings)
    return {"rows": len(ratings), "users": ratings["userId"].nunique()}


@app.post("/ratings/predict")
def predict(file: Upload, detail: bool = False, level: Level = LEVEL) -> Response:
    """Predict the rating of each row of a CSV of `userId` and `movieId`; in detail with an interval and reasons."""
    pairs, (model, movies) = read_pairs(file.file, rated=False), service.serving()
    answer = model.explain(pairs, movies, level) if detail else pd.Series(model.predict(pairs, movies))
    return Response(answer.to_json(orient="index"), media_type="application/json")


@app.get("/health/live")
async def live() -> dict[str, str]:
    """Tell that the server is up."""
    return {"status": "live"}


@app.get("/health/ready")
def ready() -> dict[str, Any]:
    """Tell what model serves; 503 until there is one."""
    if service.model is None:
        raise HTTPException(503, "there is no model yet: POST ratings to /ratings/train first")
    return {"status": "ready", "model": service.model.report}
