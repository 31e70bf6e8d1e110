package main

import (
	"context"
	"errors"
	"os"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// flux has the health rules of a Kustomization, by apiVersion and kind.
type flux map[[2]string]*cel.StatusEvaluator

func fluxRules(file string) (flux, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var kustomization struct {
		Spec struct {
			HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &kustomization); err != nil {
		return nil, err
	}
	rules := flux{}
	for _, check := range kustomization.Spec.HealthCheckExprs {
		evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
		if err != nil {
			return nil, err
		}
		rules[[2]string{check.APIVersion, check.Kind}] = evaluator
	}
	return rules, nil
}

// health is what Flux' own evaluator says.
func (rules flux) health(o object) (Health, error) {
	rule, found := rules[[2]string{o.text("apiVersion"), o.text("kind")}]
	if !found {
		return Health{}, errors.New("no rule speaks of this kind")
	}
	// Whole numbers must be integers, which only the API machinery's own decoding makes of them.
	text, err := yaml.Marshal(o.content)
	if err != nil {
		return Health{}, err
	}
	if text, err = yaml.YAMLToJSON(text); err != nil {
		return Health{}, err
	}
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(text); err != nil {
		return Health{}, err
	}
	result, err := rule.Evaluate(context.Background(), &u)
	if err != nil { // as long as there is no status; Flux then asks again
		return Health{Status: "Unknown", Message: err.Error()}, nil
	}
	return Health{Status: result.Status.String(), Message: result.Message}, nil
}
