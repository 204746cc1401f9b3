package main

import (
	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"eboot/config"
	"eboot/internal/agent"
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
			a, err := agent.New(agent.Options{Config: settings, Logger: c.logger(settings.Log, nil), Version: version})
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "YAML file (default: none; EBOOT_… variables and defaults)")
	return cmd
}

func (c *command) logger(l config.Log, exclude func(level hclog.Level, text string, args ...any) bool) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "eboot", Output: c.err, Level: hclog.LevelFromString(l.Level), JSONFormat: l.Format == config.LogJSON, Exclude: exclude,
	})
}
