"""Who can have code run by a cluster: nobody but who started it, or holds its certificates."""
import contextlib
import socket

import pytest
from clusters import dask
from conftest import one_line, refused
from synthetic import PATIENT, brain, command, save

distributed = pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
pytest.importorskip("cryptography", reason="needs requirements-cluster.txt")
workers_of = pytest.importorskip("cluster.workers")
psutil = pytest.importorskip("psutil")
Security = distributed.Security


@pytest.fixture(scope="module")
def ports():
    """Where the processes of local:1 listen, this one among them: pairs of address and port."""
    before = listening()
    with workers_of.connected("local:1"):
        yield sorted(listening() - before)


def listening():
    here = psutil.Process()
    return {tuple(found.laddr) for process in (here, *here.children(recursive=True))
            for found in process.net_connections("inet") if found.status == psutil.CONN_LISTEN}


def certificate(path):
    """Write a certificate, which is its own authority, and its key, all to one file."""
    made = Security.temporary()
    path.write_text(made.tls_client_cert + made.tls_client_key)
    return path


def test_no_stranger_connects_to_the_processes_of_a_local_cluster(ports):
    strangers = (None, Security.temporary())
    assert len(ports) > 2  # scheduler, nanny and worker
    for host, port in ports:
        assert host == "127.0.0.1"
        for scheme, security in zip(("tcp", "tls"), strangers, strict=True):
            with pytest.raises(OSError):
                distributed.Client(f"{scheme}://{host}:{port}", timeout=PATIENT, security=security)


@pytest.mark.skipif(workers_of.has_dashboard(), reason="the dashboard of bokeh is such a page")
def test_the_processes_of_a_local_cluster_show_no_web_pages(ports):
    for place in ports:
        with socket.create_connection(place, timeout=PATIENT) as page:
            page.sendall(b"GET /info/main/workers.html HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in page.recv(100)


def test_without_cryptography_the_remedy_is_said(monkeypatch):
    def missing(**_):
        raise ImportError("cryptography")

    monkeypatch.setattr(Security, "temporary", missing)
    with contextlib.ExitStack() as stack:
        said = one_line(workers_of.connect, "local:1", stack)
    assert "package cryptography" in said and "requirements-cluster.txt" in said


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A cluster that asks for certificates: its address, and the file of one."""
    folder = tmp_path_factory.mktemp("guarded")
    file = certificate(folder / "own.pem")
    with dask(folder, [], tls=file) as address:
        yield address, file


def test_a_cluster_that_asks_for_certificates_works_with_its_own(guarded, tmp_path):
    address, file = guarded
    save(tmp_path / "v.nii", brain(0, (20, 19, 18)))
    status, out, errors = command("test.py", "--upscale", "--no-report", "--test_dir",
                                  tmp_path / "v.nii", "--output", tmp_path / "fine.nii",
                                  "--scheduler", address, "--tls", file, file, file)
    assert (status, errors) == (0, []) and "Cluster: 1 worker" in out
    assert (tmp_path / "fine.nii").is_file()


def test_what_is_wrong_with_certificates_is_one_line(guarded, tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.connecting.PATIENCE", 3)
    address, file = guarded
    other = str(certificate(tmp_path / "other.pem"))
    (tmp_path / "text.pem").write_text("no certificate")
    text, none = str(tmp_path / "text.pem"), str(tmp_path / "none.pem")
    for name, tls, words in (
        (address, (), "asks for certificates; give --tls CA CERT KEY"),
        (address, 3 * (other,), "answers at " + address + " with these certificates"),
        (address, 3 * (text,), f"--tls: {text}, {text}, {text}: not a certificate authority"),
        (address, (str(file), str(file), none), f"{none}: not a certificate authority"),
        (address.replace("tls", "tcp"), (), "one with TLS needs an address tls://... and --tls"),
    ):
        with contextlib.ExitStack() as stack:
            assert words in one_line(workers_of.connect, name, stack, tls)


@pytest.mark.parametrize("options, words", [
    (["--scheduler", "tls://a:1", "--tls", "x", "y"], "three files, CA CERT KEY, not 2"),
    (["--scheduler", "tcp://a:1", "--tls", "x", "y", "z"], "works only with --scheduler tls://"),
    (["--tls", "x", "y", "z"], "works only with --scheduler tls://")])
@pytest.mark.parametrize("script", ["train", "test"])
def test_certificates_that_mean_nothing_are_refused(capsys, script, options, words):
    assert f"argument --tls: {words}" in refused(capsys, script, *options)
