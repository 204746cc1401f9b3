package main

import (
	"os"

	"github.com/spf13/cobra"

	"eboot/internal/sockholder"
)

// sockholderCommand is no verb for people: the agent starts it.
func (c *command) sockholderCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sockholder", Short: "Keep slaves' connections open when the server dies (started by the agent)", Hidden: true, Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return sockholder.Serve(sockholder.KeepFor) },
	}
}

// holderCommand starts the holder of connections: this very program, even after
// another version was put in its place. The first process of a container takes all
// others with it, so that a holder would be of no use, and only seem to be.
func holderCommand() []string {
	if os.Getpid() == 1 {
		return nil
	}
	return []string{"/proc/self/exe", "sockholder"}
}
