#!/usr/bin/env python3
"""Fails every system call of a program once, one at a time.

A first run under strace counts the calls. Then, for each (call, n-th time, error), the program runs anew with just
that call failing; everything else is real. Afterwards the checker must accept the directory against what the
program had acknowledged by its 'ack TEXT' lines.

A run is bad when
  - the checker refuses: something acknowledged is not there;
  - the program dies of a signal, panics (exit 101 or 134) or hangs;
  - a sync failed with EIO or ENOSPC and the program still ends with 0. The page cache hides such a loss from the
    checker, so the swallowed error itself is the finding.

What strace cannot do: it sees neither io_uring nor stores into a mapped file, and a call it fails is never made
('crashdisk' covers those). And it counts the calls of each thread alone, so that the n-th call of every thread fails:
one that is swallowed may hide behind another that is not. In a program with one thread that cannot be.

Exit: 0 all well, 1 a bad run or too few, 2 the program fails without faults, 77 strace cannot run here.
"""

import argparse
import collections
import os
import re
import shlex
import shutil
import subprocess
import sys

# The errors that each call may really meet. Calls that are not listed are not failed.
ERRORS = {
    'openat': 'EIO,ENOSPC,EMFILE,EACCES', 'mkdir': 'EIO,ENOSPC', 'mkdirat': 'EIO,ENOSPC',
    'write': 'EIO,ENOSPC', 'pwrite64': 'EIO,ENOSPC,EINTR,EDQUOT', 'writev': 'EIO,ENOSPC', 'pwritev': 'EIO,ENOSPC',
    'pwritev2': 'EIO,ENOSPC', 'copy_file_range': 'EIO,ENOSPC',
    'fsync': 'EIO,ENOSPC', 'fdatasync': 'EIO,ENOSPC,EINTR', 'msync': 'EIO,ENOMEM', 'sync_file_range': 'EIO',
    'fallocate': 'EIO,ENOSPC,EOPNOTSUPP', 'ftruncate': 'EIO,ENOSPC',
    'rename': 'EIO,ENOSPC', 'renameat': 'EIO,ENOSPC', 'renameat2': 'EIO,ENOSPC', 'link': 'EIO', 'linkat': 'EIO',
    'unlink': 'EIO', 'unlinkat': 'EIO',
    'read': 'EIO', 'pread64': 'EIO', 'fstat': 'EIO', 'statx': 'EIO', 'getdents64': 'EIO', 'statfs': 'EIO',
    'fstatfs': 'EIO', 'close': 'EIO',
    'mmap': 'ENOMEM', 'mremap': 'ENOMEM', 'madvise': 'ENOMEM', 'clone3': 'EAGAIN', 'flock': 'EWOULDBLOCK',
}
SYNCS = {'fsync', 'fdatasync', 'msync', 'sync_file_range'}
DURABILITY_LOST = {'EIO', 'ENOSPC'}

LOADER_FAILED = {126, 127}  # the dynamic loader's own call failed: the program never began
DIED = {101, 134, 135, 139}  # a panic; a shell's words for SIGABRT, SIGBUS, SIGSEGV
NO_ACK = '-1'
UNSUPPORTED = 77


class Run:
    """One run of a program: how it ended, what it said, and what it acknowledged."""

    def __init__(self, command, timeout):
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout)
            self.code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            self.code, out, err = None, late.stdout or b'', late.stderr or b''
        self.out, self.err = (text.decode(errors='replace') for text in (out, err))
        # A line cut short by the program's death promises nothing.
        self.acks = re.findall(r'^ack (.*)\n', self.out, re.M)

    def died(self):
        """How, if it did."""
        if self.code is None:
            return 'it hangs'
        if self.code < 0 or self.code in DIED:
            return f'it died (exit {self.code}): {self.err.strip()[-200:]}'
        return None


class Subject:
    """The program under test with its directory and checker."""

    def __init__(self, options):
        self.dir = os.path.abspath(options.dir)
        self.trace = self.dir + '.trace'
        self.acks = self.dir + '.acks'
        self.program = [word.replace('{dir}', self.dir) for word in options.program]
        self.checker = shlex.split(options.check)
        self.timeout = options.timeout

    def run(self, *strace):
        """Runs the program in an empty directory under strace."""
        shutil.rmtree(self.dir, ignore_errors=True)
        return Run(['strace', '-f', '-qq', '-o', self.trace, *strace, *self.program], self.timeout)

    def check(self, acks):
        with open(self.acks, 'w', encoding='utf-8') as file:
            file.writelines(ack + '\n' for ack in acks)
        words = {'{dir}': self.dir, '{acks}': self.acks, '{ack}': acks[-1] if acks else NO_ACK}
        return Run([fill_in(word, words) for word in self.checker], self.timeout)

    def calls(self):
        """How often each thread made each call (strace counts for each thread alone), and how often the call was
        made before the directory was first named: by the loader and the runtime's start, which are not our subject."""
        made, before, seen = collections.defaultdict(collections.Counter), collections.Counter(), False
        with open(self.trace, errors='replace', encoding='utf-8') as lines:
            for line in lines:
                if call := re.match(r'(\d+)\s+(\w+)\(', line):
                    thread, name = call.groups()
                    seen = seen or (self.dir in line and name != 'execve')
                    made[name][thread] += 1
                    before[name] += not seen
        return made, before

    def was_injected(self):
        with open(self.trace, errors='replace', encoding='utf-8') as lines:
            return any('(INJECTED)' in line for line in lines)

    def clean(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        for path in (self.trace, self.acks):
            if os.path.exists(path):
                os.unlink(path)


def fill_in(word, words):
    for name, value in words.items():
        word = word.replace(name, value)
    return word


def nth_calls(threads, before, most):
    """Which n to fail: all, or if there are more than `most`, evenly spread."""
    numbers = range(before + 1, max(threads.values()) + 1)
    return numbers[::max(1, -(-len(numbers) // most))]


def judge(call, error, run, check):
    """Why a run is bad, or None."""
    if died := run.died():
        return died
    if check.code != 0:
        return f'the checker refuses: {(check.out + check.err).strip()[-300:]}'
    if run.code == 0 and call in SYNCS and error in DURABILITY_LOST:
        return 'a failed sync was swallowed'
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dir', required=True, help='directory of the program, emptied before each run; {dir} in the commands')
    parser.add_argument('--check', required=True, help="command that accepts the directory; {ack} is the TEXT of the last 'ack TEXT' (-1: none), {acks} a file of all, one a line")
    parser.add_argument('--calls', help='only these, separated by commas')
    parser.add_argument('--errors', action='append', default=[], metavar='CALL=ERROR,...', help='other errors for a call')
    parser.add_argument('--max-per-call', type=int, default=40, help='at most so many n for each call, evenly spread (40)')
    parser.add_argument('--faults-min', type=int, default=1, help='fail if fewer faults were injected (1)')
    parser.add_argument('--timeout', type=float, default=60, help='seconds for each run (60)')
    parser.add_argument('program', nargs='+', help='after --: the program and its arguments')
    options = parser.parse_args()
    errors = ERRORS | dict(pair.split('=', 1) for pair in options.errors)
    subject = Subject(options)

    try:
        usable = subprocess.run(['strace', '-qq', '-o', os.devnull, 'true'], capture_output=True, check=False)
    except FileNotFoundError:
        print('not possible on this machine: strace is not installed', file=sys.stderr)
        return UNSUPPORTED
    if usable.returncode != 0:
        print(f'not possible on this machine: {usable.stderr.decode().strip()}', file=sys.stderr)
        return UNSUPPORTED

    healthy = subject.run()
    if healthy.code != 0 or subject.check(healthy.acks).code != 0:
        print(f'it fails without any fault (exit {healthy.code}): {healthy.err.strip()[-500:]}', file=sys.stderr)
        return 2
    made, before = subject.calls()
    chosen = options.calls.split(',') if options.calls else errors

    faults = bad = unnoticed = 0
    for call in chosen:
        if call not in made:
            continue
        faults_before = faults
        for n in nth_calls(made[call], before[call], options.max_per_call):
            for error in errors.get(call, 'EIO').split(','):
                run = subject.run('-e', f'trace={call}', '-e', f'inject={call}:error={error}:when={n}')
                if run.code in LOADER_FAILED or not subject.was_injected():
                    continue
                faults += 1
                unnoticed += run.code == 0
                if why := judge(call, error, run, subject.check(run.acks)):
                    bad += 1
                    print(f'BAD {call} no. {n} {error}, acknowledged {run.acks[-1] if run.acks else "nothing"}: {why}', flush=True)
        print(f'{call}: {faults - faults_before} faults', flush=True)
    subject.clean()
    if faults < options.faults_min:
        print(f'BAD {faults} faults are too few, {options.faults_min} are wanted')
        bad += 1
    print(f'syscall_faults: faults={faults} bad={bad} unnoticed={unnoticed}')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
