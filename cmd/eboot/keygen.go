package main

import "github.com/spf13/cobra"

func (c *command) keygenCommand() *cobra.Command {
	return group("keygen", "Make keys", c.keygenBundle(), c.keygenGossip())
}
