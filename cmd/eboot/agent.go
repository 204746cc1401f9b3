package main

import (
	"context"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"eboot/config"
	"eboot/internal/agent"
	"eboot/internal/systemd"
)

func (c *command) agentCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "agent", Short: "Run a server", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := config.Load(path, c.environ())
			if err != nil {
				return err
			}
			logger := c.logger(settings.Log, nil)
			a, err := agent.New(agent.Options{Config: settings, Logger: logger, Version: version, Holder: holderCommand()})
			if err != nil {
				return err
			}
			return runWatched(cmd.Context(), a, logger)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "YAML file (default: none; EBOOT_… variables and defaults)")
	return cmd
}

// runWatched runs a server and tells systemd, if that is who started it, when slaves
// are served, and that it lives: a server that hangs is then killed, and its slaves go to
// another at once instead of waiting a minute for it.
func runWatched(ctx context.Context, a *agent.Agent, logger hclog.Logger) error {
	notifier, err := systemd.New(logger.Named("systemd"))
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-a.Started():
			notifier.Ready()
		case <-watching.Done():
			return
		}
		if err := notifier.Watch(watching, a.Healthy); err != nil && watching.Err() == nil {
			logger.Warn("systemd is not told any more that this server lives", "error", err)
		}
	})
	told := context.AfterFunc(ctx, notifier.Stopping)
	err = a.Run(ctx)
	told()
	stop()
	watch.Wait()
	return err
}

func (c *command) logger(l config.Log, exclude func(level hclog.Level, text string, args ...any) bool) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "eboot", Output: c.err, Level: hclog.LevelFromString(l.Level), JSONFormat: l.Format == config.LogJSON, Exclude: exclude,
	})
}
