"""Who comes in: the login page, login and logout."""

from __future__ import annotations

import secrets
from typing import Any

import live  # live
from flask import Blueprint, current_app, redirect, render_template, request, session, url_for
from flask_login import LoginManager, current_user, login_required, login_user, logout_user
from models import Room, User, db
from sqlalchemy import select
from werkzeug.security import check_password_hash

DEMO = {"Mara": "demo", "Jonas": "demo"}  # passwords, which the login page shows to everyone

pages = Blueprint("people", __name__)
logins = LoginManager()
logins.login_view = "people.entrance"
logins.login_message = ""


@logins.user_loader
def load_user(number: str) -> User | None:
    """Return the person of a session, unless they have logged in elsewhere since."""
    user = db.session.get(User, int(number))
    if user and current_app.config["ONE_LOGIN"] and user.login != session.get("login"):
        return None
    return user


@pages.get("/")
def entrance() -> Any:
    if current_user.is_authenticated:
        first = db.session.scalars(select(Room.id).order_by(Room.id)).first()
        return redirect(url_for("talk.room", number=first))
    return render_template("login.html", demo=DEMO)


@pages.post("/login")
def login() -> Any:
    name, password = request.form.get("name", ""), request.form.get("password", "")
    user = db.session.scalars(select(User).where(User.name == name)).one_or_none()
    if user is None or not check_password_hash(user.password, password):
        return render_template("login.html", demo=DEMO, error="This name and password do not go together."), 401
    session.clear()
    session["login"] = user.login = secrets.token_hex(16)
    db.session.commit()
    login_user(user)
    if current_app.config["ONE_LOGIN"]:  # live
        live.rooms.disconnect(user.name, code=4001, reason="You have come in elsewhere.")  # live
    wanted = request.form.get("next", "")
    is_ours = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return redirect(wanted if is_ours else url_for(".entrance"))


@pages.post("/logout")
@login_required
def logout() -> Any:
    live.rooms[session["login"]].close(4002, "You have logged out.")  # live
    logout_user()
    session.clear()
    return redirect(url_for(".entrance"))
