package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) tokenCommand() *cobra.Command {
	return group("token", "Tokens with which operators and programs use the API", c.tokenCreate(), c.tokenList(), c.tokenRevoke(), c.tokenWhoami())
}

// defaultTokenLife is how long a token is good where nothing else is said.
const defaultTokenLife = 90 * 24 * time.Hour

// tokenMade is what `token create` says.
type tokenMade struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Role      eboot.Role `json:"role"`
	ExpiresAt time.Time  `json:"expires_at,omitzero"`
	Token     string     `json:"token,omitempty"` // the secret; empty: it is in File
	File      string     `json:"file,omitempty"`
}

func (c *command) tokenCreate() *cobra.Command {
	var role, out string
	var life time.Duration
	cmd := c.write(&cobra.Command{
		Use: "create NAME", Short: "Make a token and print it, this once: the servers keep only its digest", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			made := tokenMade{Name: args[0], File: out}
			var err error
			if made.Role, err = eboot.ParseRole(role); err != nil {
				return fmt.Errorf("--role: %w", err)
			}
			if err := eboot.CheckName("token", made.Name); err != nil {
				return err
			}
			if life < 0 {
				return fmt.Errorf("--expires %s: want a time from now, or 0 for never: %w", life, eboot.ErrInvalid)
			}
			if life > 0 {
				made.ExpiresAt = time.Now().Add(life).UTC().Truncate(time.Second)
			}
			return c.createToken(ctx, client, made)
		}),
	})
	cmd.Flags().StringVar(&role, "role", "", "viewer, publisher, operator or admin; each may do what those before it may")
	completeRole(cmd, "role")
	cmd.Flags().DurationVar(&life, "expires", defaultTokenLife, "how long it is good; 0: for ever")
	cmd.Flags().StringVar(&out, "out", "", "write the token to a new file, which its owner alone can read, and do not print it")
	return cmd
}

func (c *command) createToken(ctx context.Context, client *api.Client, made tokenMade) error {
	var id [8]byte
	var secret [32]byte
	_, _ = rand.Read(id[:]) // it never fails (crypto/rand)
	_, _ = rand.Read(secret[:])
	text := eboot.FormatToken(id, secret)
	var digest eboot.Digest
	var err error
	if made.ID, digest, err = eboot.ParseToken(text); err != nil {
		return err
	}
	// The file comes first: a token that nobody has would only stand there.
	if made.File != "" {
		if err := writeNew(made.File, 0o600, []byte(text+"\n")); err != nil {
			return err
		}
	}
	_, err = client.CreateToken(ctx, api.TokenRequest{ID: made.ID, Name: made.Name, Role: made.Role, Digest: digest, ExpiresAt: made.ExpiresAt})
	if err != nil && made.File != "" && !errors.Is(err, eboot.ErrUnknownOutcome) {
		err = errors.Join(err, os.Remove(made.File))
	}
	if err != nil {
		return err
	}
	if made.File == "" {
		made.Token = text
	}
	return c.print(made, func(w io.Writer) error {
		if made.File == "" {
			fmt.Fprintf(c.err, "token %s, %s, %s; it is not shown again:\n", made.Name, made.Role, goodUntil(made.ExpiresAt))
			_, err := fmt.Fprintln(w, text)
			return err
		}
		_, err := fmt.Fprintf(w, "token %s, %s, %s: %s\n", made.Name, made.Role, goodUntil(made.ExpiresAt), made.File)
		return err
	})
}

// goodUntil says when something that expires does.
func goodUntil(t time.Time) string {
	if t.IsZero() {
		return "for ever"
	}
	return "until " + t.UTC().Format("2006-01-02 15:04 MST")
}

func (c *command) tokenList() *cobra.Command {
	return c.read(&cobra.Command{
		Use: "list", Short: "List the tokens, without their secrets", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			tokens, err := client.Tokens(ctx)
			if err != nil {
				return err
			}
			return c.print(tokens, func(w io.Writer) error {
				rows := make([][]string, len(tokens))
				for i, one := range tokens {
					good := goodUntil(one.ExpiresAt)
					if !one.ExpiresAt.IsZero() && !time.Now().Before(one.ExpiresAt) {
						good = "expired"
					}
					rows[i] = []string{one.Name, string(one.Role), one.ID, one.CreatedAt.UTC().Format(time.DateOnly), one.CreatedBy.String(), good}
				}
				return table(w, "NAME ROLE ID CREATED BY GOOD", rows)
			})
		}),
	})
}

func (c *command) tokenRevoke() *cobra.Command {
	return c.write(&cobra.Command{
		Use: "revoke NAME|ID", Short: "Make a token worth nothing, at once", Args: arguments(1, 1), ValidArgsFunction: c.complete(tokenNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			result, err := client.RevokeToken(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "token %s is revoked\n", args[0])
				return err
			})
		}),
	})
}

func (c *command) tokenWhoami() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Say who the server takes you for, and what you may do", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			who, err := client.Whoami(ctx)
			if err != nil {
				return err
			}
			return c.print(who, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %s\n", who, who.Role)
				return err
			})
		}),
	}
}
