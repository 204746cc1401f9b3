package systemd

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Watch gives systemd a sign of life every quarter of the watchdog's time, as long
// as check returns nil, until ctx ends; then it returns nil. Without a watchdog
// it returns nil at once and never calls check. It should run until the process
// has stopped.
//
// check asks whether the process still does its work, and returns an error when
// it does not, or should be killed to be of use again; nothing that another
// server or the network decides belongs there. Its context ends after half of the
// watchdog's time, so that after one check cut off there is time for another: only
// what hangs for three quarters of the watchdog's time or more is killed. A check that
// does not return is a hung process: no sign of life is given until it does, and Watch
// does not return before it.
func (n *Notifier) Watch(ctx context.Context, check func(context.Context) error) error {
	if n.watchdog == 0 {
		return nil
	}
	ticker := time.NewTicker(n.watchdog / 4)
	defer ticker.Stop()
	for {
		err := n.ask(ctx, n.watchdog/2, check)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			n.send(daemon.SdNotifyWatchdog)
		} else {
			n.logger.Error("no sign of life for systemd, which ends this process when that lasts", "lasts", n.watchdog, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// ask calls check, and logs when it takes longer than limit: systemd may end the
// process before check returns.
func (n *Notifier) ask(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s: %w", limit, context.DeadlineExceeded))
	defer cancel()
	logged := make(chan struct{})
	timer := time.AfterFunc(limit, func() {
		defer close(logged)
		n.logger.Error("this process hangs: its own check does not return, and systemd ends it soon", "since", limit)
	})
	err := check(ctx)
	if !timer.Stop() {
		<-logged
	}
	return err
}
