"""Sessions on the web: what is the same for all frameworks. Each has a module of its own, with the same few names."""

from asyncsess.web.answers import Answer, answer_to
from asyncsess.web.cookie import CookiePolicy
from asyncsess.web.login import login, logout

__all__ = ["Answer", "CookiePolicy", "answer_to", "login", "logout"]
