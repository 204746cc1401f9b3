// Command eboot is the boot service: `eboot agent` runs a server, every other
// verb talks to one through its admin API. main is a shell: it turns arguments
// and signals into calls, and errors into exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"eboot"
)

// Exit codes, as scripts see them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUnreachable = 2 // no connection or no leader
	exitInvalid     = 3
	exitNotFound    = 4
	exitConflict    = 5
	exitDenied      = 6
	exitUnknown     = 7 // timed out or outcome unknown
	exitRollout     = 8 // rollout failed or rolled back
)

// exitTable is the one place where sentinels become exit codes; the first match wins.
var exitTable = []struct {
	sentinel error
	code     int
}{
	{eboot.ErrInvalid, exitInvalid},
	{eboot.ErrTooLarge, exitInvalid},
	{eboot.ErrNotFound, exitNotFound},
	{eboot.ErrConflict, exitConflict},
	{eboot.ErrUnauthenticated, exitDenied},
	{eboot.ErrDenied, exitDenied},
	{eboot.ErrUnknownOutcome, exitUnknown},
	{eboot.ErrTimeout, exitUnknown},
	{eboot.ErrNoLeader, exitUnreachable},
	{eboot.ErrUnreachable, exitUnreachable},
	{eboot.ErrUnavailable, exitFailed},
	{errRollout, exitRollout},
	{errNegative, exitFailed},
}

func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	for _, row := range exitTable {
		if errors.Is(err, row.sentinel) {
			return row.code
		}
	}
	return exitFailed
}

func main() {
	if err := withoutCoreFiles(); err != nil {
		fmt.Fprintln(os.Stderr, "eboot: keys may get into core files:", err)
	}
	// A reader that went away is an error of the write, not the end of a server.
	signal.Ignore(syscall.SIGPIPE)
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signals = append(signals, syscall.SIGHUP)
	}
	// The first signal asks for a graceful end; one that comes two seconds later or
	// more kills. (Terminals and supervisors often send the first one twice.)
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() { time.AfterFunc(2*time.Second, stop) })
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
