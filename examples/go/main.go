// Ranks models for prompts, from Go: go run . STORE PROMPT...
package main

import (
	"fmt"
	"os"
	"sync"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: route STORE PROMPT...")
		os.Exit(2)
	}
	router, err := Open(os.Args[1], `{"device": "cpu", "threads": 1}`)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer router.Close()

	prompts := os.Args[2:]
	answers := make([]string, len(prompts))
	var all sync.WaitGroup
	for n, prompt := range prompts {
		all.Add(1)
		go func(n int, prompt string) {
			defer all.Done()
			ranked, err := router.Route(prompt, 3)
			if err != nil {
				answers[n] = err.Error() + "\n"
				return
			}
			for _, model := range ranked {
				answers[n] += fmt.Sprintf(
					"%6.2f %%  %s (%s)\n", 100*model.Probability, model.Model, model.Domain)
			}
		}(n, prompt)
	}
	all.Wait()
	for _, answer := range answers {
		fmt.Print(answer)
	}
}
