package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) rolloutCommand() *cobra.Command {
	return group("rollout", "Move a channel to another bundle in stages", c.rolloutPlan(), c.rolloutStart(), c.rolloutStatus(),
		c.steer("pause", "Change nothing until it is resumed", eboot.RolloutPause),
		c.steer("resume", "Go on when it was paused, or stopped by failures", eboot.RolloutResume),
		c.rolloutPromote(),
		c.steer("abort", "End it: all slaves boot what the channel points to", eboot.RolloutAbort),
		c.steer("undo", "Abort it, or, when it has succeeded, move the channel back", eboot.RolloutUndo))
}

// rolloutFlags say how a rollout goes.
type rolloutFlags struct {
	stages      []string
	maxFailures int
	deadline    time.Duration
	minHealthy  time.Duration
	autoPromote bool
	approve     bool
	noRollback  bool
	restart     int
}

func (f *rolloutFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.stages, "stage", nil, "which slaves are next, [NAME:]TERM[,TERM]: 10%, KEY=VALUE of their labels, label=WORD for any label; may be repeated (default 100%)")
	flags.IntVar(&f.maxFailures, "max-failures", 0, "how many boots may fail; one more rolls it back")
	flags.DurationVar(&f.deadline, "deadline", eboot.DefaultBootDeadline, "how long a boot may take")
	flags.DurationVar(&f.minHealthy, "min-healthy", eboot.DefaultMinHealthy, "how long a slave must stay up after that")
	flags.BoolVar(&f.autoPromote, "auto-promote", false, "a stage that has passed begins the next (the default)")
	flags.BoolVar(&f.approve, "approve", false, "a stage that has passed waits until it is promoted")
	flags.BoolVar(&f.noRollback, "no-rollback", false, "failures stop it where it is, and an operator decides")
	flags.IntVar(&f.restart, "restart", 0, "restart slaves that run eboot's loader with control on, so many at a time (default: slaves boot when they do)")
}

// start is what the flags ask for.
func (f *rolloutFlags) start(bundle eboot.Ref) (api.RolloutStart, error) {
	s := api.NewRolloutStart(bundle)
	if f.approve && f.autoPromote {
		return s, fmt.Errorf("--approve and --auto-promote exclude each other: %w", eboot.ErrInvalid)
	}
	s.MaxFailures, s.Restart, s.Approve, s.KeepOnFailure = f.maxFailures, f.restart, f.approve, f.noRollback
	s.DeadlineMS, s.MinHealthyMS = f.deadline.Milliseconds(), f.minHealthy.Milliseconds()
	if len(f.stages) > 0 {
		s.Stages = nil
	}
	for _, text := range f.stages {
		stage, err := eboot.ParseStage(text)
		if err != nil {
			return s, fmt.Errorf("--%w", err) // which begins with "stage"
		}
		s.Stages = append(s.Stages, stage)
	}
	return s, s.Check()
}

// rolloutArguments are CHANNEL NAME@VERSION and the flags.
func rolloutArguments(args []string, f *rolloutFlags) (channel string, s api.RolloutStart, err error) {
	if err := eboot.CheckName("channel", args[0]); err != nil {
		return "", s, err
	}
	bundle, err := eboot.ParseRef(args[1])
	if err != nil {
		return "", s, err
	}
	s, err = f.start(bundle)
	return args[0], s, err
}

func (c *command) rolloutPlan() *cobra.Command {
	var flags rolloutFlags
	cmd := &cobra.Command{
		Use: "plan CHANNEL NAME@VERSION", Short: "Say which slaves a rollout would move, and when; nothing happens", Args: arguments(2, 2),
		ValidArgsFunction: c.complete(channelNames, bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			channel, start, err := rolloutArguments(args, &flags)
			if err != nil {
				return err
			}
			plan, err := client.PlanRollout(ctx, channel, start)
			if err != nil {
				return err
			}
			return c.print(plan, func(w io.Writer) error { return planText(w, plan, start.Restart > 0) })
		}),
	}
	flags.add(cmd)
	return c.read(cmd)
}

func planText(w io.Writer, p api.RolloutPlan, restart bool) error {
	moves := make([][]string, len(p.Moves))
	for i, m := range p.Moves {
		moves[i] = []string{p.Channel, m.ERTS, refText(m.From), refText(m.To)}
	}
	if err := table(w, "CHANNEL ERTS FROM TO", moves); err != nil {
		return err
	}
	stages := make([][]string, len(p.Stages))
	for i, s := range p.Stages {
		stages[i] = []string{s.Stage.String(), fmt.Sprint(s.Count), fmt.Sprint(s.Restartable), someText(s.Slaves, s.Count)}
	}
	fmt.Fprintln(w)
	if err := table(w, "STAGE SLAVES RESTARTABLE WHICH", stages); err != nil {
		return err
	}
	var notes []string
	for _, m := range p.Moves {
		if m.From.IsZero() {
			notes = append(notes, fmt.Sprintf("channel %s points to nothing for ERTS %s now: slaves that no stage has come to do not boot, nor does any when the rollout is taken back", p.Channel, m.ERTS))
		}
	}
	for _, s := range p.Stages {
		if s.Count == 0 {
			notes = append(notes, fmt.Sprintf("stage %s selects no slave that was seen and that no earlier stage selects: it passes when one boots, when slaves of an earlier stage are healthy, or with `eboot rollout promote %s`", s.Stage, p.Channel))
		}
	}
	if p.Unselected > 0 {
		notes = append(notes, fmt.Sprintf("no stage selects %s of the channel: they boot %s once the rollout has succeeded", slavesText(p.Unselected), p.Bundle))
	}
	for _, gap := range p.WithoutBundle {
		notes = append(notes, fmt.Sprintf("there is no bundle for ERTS %s of %s (%s), which cannot boot: publish %s for it too", gap.ERTS, slavesText(gap.Count), someText(gap.Slaves, gap.Count), p.Bundle))
	}
	if p.Unreachable > 0 && restart {
		notes = append(notes, fmt.Sprintf("--restart cannot reach %s, which boot when they do: they have Erlang's own loader, are not connected, or booted while the channel had control off (`eboot channel set %s --control on`)", slavesText(p.Unreachable), p.Channel))
	}
	if p.Unseen > 0 {
		notes = append(notes, fmt.Sprintf("hosts in the whitelist that were never seen, and are counted nowhere: %d", p.Unseen))
	}
	if len(notes) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\nnote: %s\n", strings.Join(notes, "\nnote: "))
	return err
}

func slavesText(n int) string {
	if n == 1 {
		return "1 slave"
	}
	return fmt.Sprintf("%d slaves", n)
}

// someText names the first few of count slaves; JSON has more of them.
func someText(slaves []netip.Addr, count int) string {
	const few = 5
	var names []string
	for _, s := range slaves[:min(few, len(slaves))] {
		names = append(names, s.String())
	}
	if rest := count - len(names); rest > 0 && len(names) > 0 {
		names = append(names, fmt.Sprintf("and %d more", rest))
	}
	return dash(strings.Join(names, " "))
}

func (c *command) rolloutStart() *cobra.Command {
	var flags rolloutFlags
	var watch bool
	cmd := &cobra.Command{
		Use: "start CHANNEL NAME@VERSION", Short: "Begin: the slaves of the first stage get the bundle at their next boot", Args: arguments(2, 2),
		ValidArgsFunction: c.complete(channelNames, bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			channel, start, err := rolloutArguments(args, &flags)
			if err != nil {
				return err
			}
			result, err := client.StartRollout(ctx, channel, start)
			if err != nil {
				return err
			}
			if watch && c.json() { // its lines begin with this rollout
				return c.watchRollout(ctx, client, result.Rollout)
			}
			err = c.print(result, func(w io.Writer) error {
				if err := written(w, rolloutText(result.Rollout), result.WriteResult); err != nil || watch {
					return err
				}
				_, err := fmt.Fprintf(w, "`eboot rollout status %s --watch` follows it to its end\n", channel)
				return err
			})
			if err != nil || !watch {
				return err
			}
			return c.watchRollout(ctx, client, result.Rollout)
		}),
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "follow it to its end (exit 8 when it does not succeed)")
	return c.write(cmd)
}

// rolloutText names a rollout and where it stands.
func rolloutText(r eboot.Rollout) string {
	return fmt.Sprintf("rollout %s of channel %s to %s: %s", r.ID, r.Channel, r.Target, standing(r))
}

// standing is the phase of a rollout, with its stage while that matters.
func standing(r eboot.Rollout) string {
	text := string(r.Phase)
	if !r.Phase.Over() && r.Stage < len(r.Stages) {
		text += fmt.Sprintf(", stage %d of %d (%s)", r.Stage+1, len(r.Stages), r.Stages[r.Stage])
	}
	return text
}

func (c *command) rolloutPromote() *cobra.Command {
	cmd := c.steer("promote", "Begin the next stage, or end with success after the last", eboot.RolloutPromote)
	cmd.Flags().Bool("full", false, "skip all stages that are left: the channel points to the bundle at once")
	return cmd
}

// steer is a verb that tells the rollout of a channel something.
func (c *command) steer(verb, short string, action eboot.RolloutAction) *cobra.Command {
	var id, reason string
	cmd := &cobra.Command{Use: verb + " CHANNEL", Short: short, Args: arguments(1, 1), ValidArgsFunction: c.complete(channelNames)}
	cmd.RunE = c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
		steer := api.RolloutSteer{Action: action, ID: id, Reason: reason}
		if full := cmd.Flags().Lookup("full"); full != nil && full.Value.String() == "true" {
			steer.Action = eboot.RolloutPromoteFull
		}
		if err := eboot.CheckName("channel", args[0]); err != nil {
			return err
		}
		if err := steer.Check(); err != nil {
			return fmt.Errorf("--%w", err) // which begins with "reason"
		}
		result, err := client.SteerRollout(ctx, args[0], steer)
		if err != nil {
			return err
		}
		return c.print(result, func(w io.Writer) error { return written(w, rolloutText(result.Rollout), result.WriteResult) })
	})
	cmd.Flags().StringVar(&id, "id", "", "only when the rollout is this one")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who read the events")
	return c.write(cmd)
}
