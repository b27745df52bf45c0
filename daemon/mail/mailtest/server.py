# A mail server on loopback that keeps what it gets as files: aiosmtpd, as Debian
# has it. It ends when its standard input does, so that it outlives no test.
import asyncio
import base64
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

settings = json.loads(sys.argv[1])
count = len(os.listdir(settings["dir"]))


class Keep:
    drop = False

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("never"):
            return "550 5.1.1 no such user"
        if address.startswith("later"):
            return "451 4.3.0 try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_RSET(self, server, session, envelope):
        if self.drop:
            server.transport.abort()
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        self.drop = envelope.rcpt_tos[0].startswith("drop")
        path = os.path.join(settings["dir"], "%06d" % count)
        with open(path + ".new", "w") as f:
            json.dump({
                "from": envelope.mail_from, "to": envelope.rcpt_tos,
                "tls": session.ssl is not None or settings["tls"] == "tls",
                "user": session.auth_data.decode() if session.auth_data else "",
                "data": base64.b64encode(envelope.original_content).decode(),
            }, f)
        os.rename(path + ".new", path)
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    if (data.login.decode(), data.password.decode()) == (settings["username"], settings["password"]):
        return AuthResult(success=True, auth_data=data.login)
    # Some servers repeat what they were told.
    return AuthResult(success=False, handled=False, message="535 5.7.8 not " + data.password.decode())


async def main():
    tls = None
    if settings["tls"] != "none":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(settings["cert"], settings["key"])
    wanted = settings["username"] != ""

    def session():
        return SMTP(Keep(), enable_SMTPUTF8=True, authenticator=authenticate, auth_required=wanted,
                    auth_require_tls=settings["tls"] == "starttls", require_starttls=settings["tls"] == "starttls",
                    tls_context=tls if settings["tls"] == "starttls" else None, hostname="mail.example.org")

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", settings["port"], ssl=tls if settings["tls"] == "tls" else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    await over.wait()


asyncio.run(main())
