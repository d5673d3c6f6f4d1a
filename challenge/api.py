"""HTTP: routes, status codes, limits and problem details (RFC 9457)."""

import re
from asyncio import Semaphore, to_thread
from collections.abc import Awaitable, Callable
from logging.config import dictConfig
from secrets import compare_digest
from typing import Annotated, Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import APIRouter, Body, Depends, File, Header, HTTPException, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer
from fastapi.utils import deep_dict_update
from fastapi_offline import FastAPIOffline
from prometheus_client import Counter, Gauge
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import AfterValidator

from challenge.settings import FIXED, VERSION, ChallengeError, Settings
from challenge.store import NotTrainedError, TrainingBusyError
from challenge.tables import read_pairs
from challenge.training import Service

ACTIVE = Gauge("challenge_active_model", "Number of the active model, 0 without one", multiprocess_mode="mostrecent")
PREDICTED = Counter("challenge_predicted_rows", "Rows whose rating was predicted")

Level = Annotated[float, Query(gt=0, lt=1, description="share of the true ratings that the intervals should hold")]
Upload = Annotated[UploadFile, File(description="a CSV file")]
# As in tables.
Id = Annotated[str, AfterValidator(lambda text: re.sub(FIXED.id_form, r"\1\2", text))]
Count = Annotated[int, Query(ge=1, le=1000, description="number of movies")]

settings = Settings()
dictConfig(FIXED.logging[settings.log])

service = Service(settings)
slots = Semaphore(settings.concurrency)


def on_error(request: Request, error: Exception) -> JSONResponse:
    """Turn an error into a problem document."""
    # FastAPI blames the caller for whatever keeps it from reading a body, even a full disk.
    error = error.__cause__ if hasattr(error, "status_code") and isinstance(error.__cause__, OSError) else error
    status, told = getattr(error, "status_code", 500), getattr(error, "detail", str(error) or repr(error))
    if isinstance(error, RequestValidationError):
        told = "; ".join(f"{' '.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    headers, detail = dict(getattr(error, "headers", None) or {}), FIXED.details.get(told, told)
    # An error without a problem type of its own is titled by its status.
    plain = {"type": "about:blank", "title": HTTPException(status).detail, "status": status}
    problem = FIXED.problems.get(type(error).__name__, plain)
    if isinstance(error, TrainingBusyError):
        headers["Location"] = f"{request.scope['root_path']}/trainings/{error.number}"
    return JSONResponse(problem | {"detail": detail}, problem["status"], headers, "application/problem+json")


api = FastAPIOffline(**FIXED.openapi, version=VERSION)
# FastAPI's own handlers are replaced, too.
api.exception_handlers |= dict.fromkeys((*api.exception_handlers, ChallengeError, Exception), on_error)
router = APIRouter(max_body_size=settings.max_upload, dependencies=[Depends(HTTPBearer(auto_error=False))])


@api.middleware("http")
async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse a request that lacks the key, is too large or exceeds the concurrency, before its body is read."""
    if request.scope["path"].removeprefix(request.scope["root_path"]).strip("/").split("/")[0] in FIXED.unguarded:
        return await answer(request)
    key, wanted = request.headers.get("Authorization", ""), settings.api_key.get_secret_value()
    if wanted and not compare_digest(key.partition(" ")[2].encode("latin-1"), wanted.encode()):
        return on_error(request, HTTPException(401, **FIXED.refusals[401]))
    if int(request.headers.get("Content-Length", 0)) > settings.max_upload:
        return on_error(request, HTTPException(413, f"CHALLENGE_MAX_UPLOAD is {settings.max_upload} bytes"))
    if slots.locked():
        return on_error(request, HTTPException(503, **FIXED.refusals[503]))
    async with slots:
        return await answer(request)


# Set on each scrape, as perhaps no worker has loaded the model yet.
sets_active = Depends(lambda: ACTIVE.set(service.store.active() or 0))
Instrumentator().instrument(api).expose(api, include_in_schema=False, dependencies=[sets_active])


@router.post("/ratings/train")
def train(request: Request, file: Upload, prefer: Annotated[tuple[str, ...], Header()] = ()) -> Any:
    """Train on a CSV of `userId`, `rating` and `movieId`; return the report, or on request at once where it will be."""
    number, report = service.train(read_pairs(file.file, rated=True))
    if "respond-async" not in ",".join(prefer).lower():
        return report.result()
    headers = {"Location": f"{request.scope['root_path']}/trainings/{number}", "Preference-Applied": "respond-async"}
    return JSONResponse(show_training(number), 202, headers)


# JSON numbers are exact up to 2**53.
@router.get("/trainings/{number}")
def show_training(number: Annotated[int, Path(ge=1, le=2**53)]) -> dict[str, Any]:
    """Show how far a training is, then its report or its error."""
    return service.store.training(number)


@router.get("/models")
def show_models() -> dict[str, Any]:
    """Say which model is active, and list all models that are kept, the oldest first, with their reports."""
    return {"active": service.store.active(), "models": service.store.models()}


@router.put("/models/active")
def activate(model: Annotated[int, Body(embed=True, strict=True, ge=1, le=2**53)]) -> dict[str, Any]:
    """Switch all workers to a model; answer with its report."""
    # If it cannot serve, this fails, and the earlier one goes on serving.
    service.refresh(service.store.load(model))
    service.store.activate(model)
    return service.serving().report


@router.put("/movies")
def replace_catalogue(file: Upload) -> dict[str, int]:
    """Replace the catalogue with the movies of a CSV; the next prediction knows them."""
    return {"movies": service.replace_catalogue(file.file)}


@router.get("/movies/{movie:path}/similar")
def similar(movie: Id, count: Count = 10) -> Any:
    """List the movies that the same users will like, the most similar first."""
    return service.serving().similar(movie, count).to_dict("records")


@router.get("/users/{user:path}/recommendations")
def recommend(user: Id, count: Count = 10, level: Level = FIXED.level) -> Any:
    """List the movies that a user has not rated and will like best, with intervals and reasons."""
    return service.serving().recommend(user, count, level).to_dict("records")


@router.post("/ratings")
def rate(file: Upload) -> dict[str, int]:
    """Add the ratings of a CSV like a training's; the next prediction knows them."""
    ratings = read_pairs(file.file, rated=True)
    # Fails without a model, before anything is kept.
    service.serving()
    service.store.add(ratings)
    # Learned now, so that the next prediction does not wait.
    service.serving()
    return {"rows": len(ratings), "users": ratings["userId"].nunique()}


@router.post("/ratings/predict")
def predict(file: Upload, detail: bool = False, level: Level = FIXED.level) -> Response:
    """Predict the rating of each row of a CSV of `userId` and `movieId`, on request with an interval and reasons."""
    pairs, model = read_pairs(file.file, rated=False), service.serving()
    answer = model.explain(pairs, level) if detail else model.predict(pairs)
    PREDICTED.inc(len(pairs))
    return Response(answer.to_json(orient="index"), 200, {"X-Model": str(model.report["model"])}, "application/json")


@api.head("/health/live", include_in_schema=False)
@api.get("/health/live")
async def live() -> dict[str, str]:
    """Say that the server is up."""
    return {"status": "live"}


@api.head("/health/ready", include_in_schema=False)
@api.get("/health/ready")
async def ready() -> dict[str, Any]:
    """Say which model serves; 503 until there is one."""
    try:
        # Not on the threads of other requests: probes that wait for a new catalogue would soon occupy all of them.
        return {"status": "ready", "model": (await to_thread(service.serving)).report}
    except NotTrainedError as error:
        raise HTTPException(503, str(error)) from error


api.include_router(router)
# A browser that is sent to the server lands on the page.
api.add_route("/", lambda request: RedirectResponse("docs"))
# After the last route, as FastAPI keeps what it derives from them.
deep_dict_update(api.openapi(), FIXED.answers)
# Outermost, so that every answer has its request's id, even an unforeseen error's.
app = CorrelationIdMiddleware(api)
