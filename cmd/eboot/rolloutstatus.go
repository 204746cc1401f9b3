package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

// errRollout: what was asked about is a rollout, and it did not succeed.
var errRollout = errors.New("rollout did not succeed")

// unseenPatience is how long a stage may take to be counted for the first time.
const unseenPatience = 10 * time.Second

// watchEvery is how often --watch asks.
const watchEvery = 500 * time.Millisecond

func (c *command) rolloutStatus() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status [CHANNEL]", Short: "Show the latest rollout of every channel, or of one (exit 8 when it was stopped, aborted, rolled back or undone)", Args: arguments(0, 1),
		ValidArgsFunction: c.complete(channelNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			switch {
			case len(args) > 0:
				return c.showRollout(ctx, client, args[0], watch)
			case watch:
				return fmt.Errorf("--watch: name the channel: %w", eboot.ErrInvalid)
			}
			rollouts, err := client.Rollouts(ctx)
			if err != nil {
				return err
			}
			return c.print(rollouts, func(w io.Writer) error {
				rows := make([][]string, len(rollouts))
				for i, r := range rollouts {
					sum := r.Sum()
					rows[i] = []string{r.Channel, r.ID, r.Target.String(), string(r.Phase), fmt.Sprintf("%d/%d", min(r.Stage+1, len(r.Stages)), len(r.Stages)),
						fmt.Sprint(sum.Booted), fmt.Sprint(sum.Healthy), fmt.Sprint(sum.Failures), timeText(r.ChangedAt)}
				}
				return table(w, "CHANNEL ROLLOUT BUNDLE PHASE STAGE BOOTED HEALTHY FAILURES CHANGED", rows)
			})
		}),
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "a line for each change, until it is over or stopped")
	return c.read(cmd)
}

func (c *command) showRollout(ctx context.Context, client *api.Client, channel string, watch bool) error {
	if err := eboot.CheckName("channel", channel); err != nil {
		return err
	}
	r, err := client.Rollout(ctx, channel)
	if err != nil {
		return err
	}
	if watch {
		return c.watchRollout(ctx, client, r)
	}
	if err := c.print(r, func(w io.Writer) error { return rolloutDetails(w, r) }); err != nil {
		return err
	}
	return outcome(r)
}

// outcome is nil while a rollout goes on, and when it has succeeded.
func outcome(r eboot.Rollout) error {
	switch r.Phase {
	case eboot.RolloutStopped, eboot.RolloutAborted, eboot.RolloutRolledBack, eboot.RolloutUndone:
		return fmt.Errorf("%w: %w", errRollout, errNegative)
	}
	return nil
}

func rolloutDetails(w io.Writer, r eboot.Rollout) error {
	base := make([]string, 0, len(r.Base))
	for _, erts := range slices.Sorted(maps.Keys(r.Base)) {
		base = append(base, erts+" "+refText(r.Base[erts]))
	}
	promotes, fails, restarts := "by itself", "it is rolled back", "no, slaves boot when they do"
	if r.Approve {
		promotes = "when an operator says so"
	}
	if r.KeepOnFailure {
		fails = "it stops, and an operator decides"
	}
	if r.Restart > 0 {
		restarts = fmt.Sprintf("%d at a time", r.Restart)
	}
	if err := fields(w, [][2]string{
		{"rollout", r.ID},
		{"channel", r.Channel},
		{"bundle", r.Target.String()},
		{"before", dash(strings.Join(base, ", "))},
		{"phase", standing(r)},
		{"reason", dash(r.Reason)},
		{"failures", fmt.Sprintf("%d, %d allowed; with more %s", r.Sum().Failures, r.MaxFailures, fails)},
		{"healthy", fmt.Sprintf("booted within %s, and up for %s", r.Deadline(), r.MinHealthy())},
		{"promotes", promotes},
		{"restarts", restarts},
		{"started", timeText(r.StartedAt)},
		{"changed", fmt.Sprintf("%s, generation %d", timeText(r.ChangedAt), r.Generation)},
	}...); err != nil {
		return err
	}
	rows := make([][]string, len(r.Stages))
	for i, s := range r.Stages {
		rows[i] = []string{s.String(), "-", "-", "-", "-", "-", "-", "-", "-"}
		if i < len(r.Totals) {
			t := r.Totals[i]
			for column, n := range []int{t.Selected, t.Waiting, t.Booted, t.Pending, t.Healthy, t.Failed, t.Failures, t.Looping} {
				rows[i][column+1] = fmt.Sprint(n)
			}
		}
	}
	fmt.Fprintln(w)
	if err := table(w, "STAGE SEEN TO-RESTART BOOTED PENDING HEALTHY FAILED FAILURES LOOPING", rows); err != nil {
		return err
	}
	if todo := rolloutAdvice(r); todo != "" {
		_, err := fmt.Fprintf(w, "\nto do: %s\n", todo)
		return err
	}
	return nil
}

// rolloutAdvice says what an operator may do with a rollout that waits for one.
func rolloutAdvice(r eboot.Rollout) string {
	next := "ends with success"
	if r.Stage+1 < len(r.Stages) {
		next = "begins " + r.Stages[r.Stage+1].String()
	}
	verb := func(name, effect string) string {
		return fmt.Sprintf("`eboot rollout %s %s` %s", name, r.Channel, effect)
	}
	abort := verb("abort", "takes it back")
	switch r.Phase {
	case eboot.RolloutRunning:
		if r.Stage < len(r.Totals) && r.Totals[r.Stage].Selected == 0 && time.Since(r.StageAt) > unseenPatience {
			return "the stage selects no slave that was seen: wait until one boots, or " + verb("promote", next)
		}
	case eboot.RolloutWaiting:
		return verb("promote", next) + ", " + abort
	case eboot.RolloutPaused:
		return verb("resume", "goes on") + ", " + abort
	case eboot.RolloutStopped:
		return verb("resume", "forgives these failures") + ", " + verb("promote", next) + ", " + abort
	}
	return ""
}

// watchRollout prints a line for each change of r until it is over or stopped. Servers may
// fail meanwhile: it gives up when none told anything new for as long as a call may take.
func (c *command) watchRollout(ctx context.Context, client *api.Client, r eboot.Rollout) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	told, heard := "", time.Now()
	for {
		line, err := c.rolloutLine(r)
		if err != nil {
			return err
		}
		if line != told {
			prefix := ""
			if !c.json() {
				prefix = timeText(time.Now()) + " "
			}
			if _, err := fmt.Fprintf(c.out, "%s%s\n", prefix, line); err != nil {
				return err
			}
			told = line
		}
		if r.Phase.Over() || r.Phase == eboot.RolloutStopped {
			return outcome(r)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("rollout %s of channel %s goes on, nobody watches it: %w", r.ID, r.Channel, eboot.ErrUnknownOutcome)
		case <-tick.C:
		}
		next, err := client.Rollout(ctx, r.Channel)
		switch {
		case err == nil && next.Generation < r.Generation: // of a server that lags behind
			err = fmt.Errorf("rollout %s of channel %s: the servers know only what was before it: %w", r.ID, r.Channel, eboot.ErrUnavailable)
		case err == nil && next.ID != r.ID:
			return fmt.Errorf("rollout %s of channel %s is over, and %s was begun since; `eboot events` says how it ended: %w", r.ID, r.Channel, next.ID, eboot.ErrConflict)
		case err == nil:
			r, heard = next, time.Now()
		}
		if err != nil && ctx.Err() == nil && time.Since(heard) > c.timeout {
			return err
		}
	}
}

// rolloutLine is what changes while a rollout is watched.
func (c *command) rolloutLine(r eboot.Rollout) (string, error) {
	if c.json() {
		data, err := json.Marshal(r)
		return string(data), err
	}
	sum := r.Sum()
	text := fmt.Sprintf("%s: %d booted, %d pending, %d healthy, %d failed; failures %d, %d allowed", rolloutText(r),
		sum.Booted, sum.Pending, sum.Healthy, sum.Failed, sum.Failures, r.MaxFailures)
	if r.Reason != "" {
		text += "; " + r.Reason
	}
	if advice := rolloutAdvice(r); advice != "" {
		text += "; " + advice
	}
	return text, nil
}
