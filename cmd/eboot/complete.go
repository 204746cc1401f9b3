package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

// completePatience is how long a shell waits for the names that fit an argument.
const completePatience = 2 * time.Second

// names asks a server what an argument may be.
type names func(ctx context.Context, client *api.Client) ([]string, error)

func channelNames(ctx context.Context, client *api.Client) (list []string, err error) {
	channels, err := client.Channels(ctx)
	for _, ch := range channels {
		list = append(list, ch.Name)
	}
	return list, err
}

func bundleNames(ctx context.Context, client *api.Client) (list []string, err error) {
	bundles, err := client.Bundles(ctx)
	var last eboot.Ref
	for _, b := range bundles { // in order: one bundle may be there for several ERTS versions
		if ref := b.Ref(); ref != last {
			list, last = append(list, ref.String()), ref
		}
	}
	return list, err
}

func tokenNames(ctx context.Context, client *api.Client) (list []string, err error) {
	tokens, err := client.Tokens(ctx)
	for _, t := range tokens {
		list = append(list, t.Name)
	}
	return list, err
}

// completeRole has a shell complete the value of a flag that is a role of operators.
func completeRole(cmd *cobra.Command, flag string) {
	var roles []string
	for _, r := range eboot.Roles() {
		roles = append(roles, string(r))
	}
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp)) // it fails without the flag
}

// complete has a shell complete the arguments of a verb, one kind for each.
func (c *command) complete(kinds ...names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(kinds) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c.stale = true // soon rather than newest
		client, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completePatience)
		defer cancel()
		list, err := kinds[len(args)](ctx, client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}
