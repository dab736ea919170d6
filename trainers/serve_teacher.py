"""Serve a teacher's final hidden states over HTTP, to students that train in other processes or on other machines.

    python trainers/serve_teacher.py --model_name_or_path recipes/tiny/parent --port 8000

prints the URL that `RemoteTeacher` takes and runs until SIGTERM or Ctrl-C. One device, one forward at a time, any
number of clients. It listens to this machine alone unless `--host` says otherwise. HF_CASCADE_TEACHER_TOKEN, where the
environment has it, is asked of every client. Nothing is encrypted: use a private network or a tunnel.
"""

import argparse


def main(arguments):
    import os
    import signal
    import sys

    import torch

    from hf_cascade.distill.serve import TeacherServer
    from hf_cascade.distill.wire import TOKEN_VARIABLE
    from hf_cascade.loading import load_model, load_tokenizer

    name, token = arguments.model_name_or_path, os.environ.get(TOKEN_VARIABLE)
    tokenizer = load_tokenizer(name)
    model = load_model(name, arguments.dtype, attn_implementation=arguments.attn_implementation)
    model = model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    server = TeacherServer(model, tokenizer, arguments.host, arguments.port, token, name)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        if token is None and arguments.host not in ("127.0.0.1", "localhost"):
            print(
                f"hf-cascade: no authentication: whoever reaches this port is served (set {TOKEN_VARIABLE})", flush=True
            )
        print(f"hf-cascade: {name} in {server.info.dtype} on {model.device} at {server.url}", flush=True)
        server.serve_forever()
    finally:
        server.close()


def make_parser():
    parser = argparse.ArgumentParser(description="Serve a teacher's final hidden states over HTTP.")
    parser.add_argument("--model_name_or_path", required=True, help="the teacher: folder or Hub id")
    parser.add_argument("--dtype", default="auto", help="type of its weights; auto: the checkpoint's own")
    parser.add_argument("--attn_implementation", help="attention kernel; default transformers' choice")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one; the URL is printed")
    return parser


if __name__ == "__main__":
    from hf_cascade.stage import run_script

    run_script(main, lambda: (make_parser().parse_args(),))
